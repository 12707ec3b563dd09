"""What result pages say about the machine."""
import os
import pathlib
import platform
import re


def facts():
    return dict(re.findall(r"^(model name|cpu family|model|flags)\s*:\s*(.*)$",
                           pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE))


def processor():
    """One line: name, family, instruction sets, cores."""
    about = facts()
    flags = about.get("flags", "").split()
    sets = [name for flag, name in (("avx2", "AVX2"), ("avx_vnni", "AVX-VNNI"), ("avx512f", "AVX-512"),
                                    ("avx512_vnni", "VNNI"), ("avx512_bf16", "BF16"),
                                    ("amx_int8", "AMX"), ("asimddp", "NEON dot")) if flag in flags]
    name = about.get("model name", platform.processor())
    return (f"{name} (family {about.get('cpu family', '?')}, model {about.get('model', '?')}; "
            f"{', '.join(sets)}), {os.cpu_count()} cores")


def slug():
    """For file names: the processor's name, and what tells two of one name apart."""
    about = facts()
    name = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", " ", about.get("model name", platform.machine()))
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(words + [about.get("cpu family", ""), about.get("model", "")]).strip("-")
