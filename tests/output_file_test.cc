// Files appear whole or not at all: whatever goes wrong, the target is the old one and nothing lies
// beside it.
#include "lib/io/output_file.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <thread>

#include <gtest/gtest.h>

#include "nibble/gguf.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

using Names = std::vector<std::string>;

Status WriteFile(const std::string& path, const std::string& text, uint64_t reserve = 0) {
  Result<OutputFile> file = OutputFile::Create(path, reserve);
  if (!file.ok()) return file.status();
  if (Status status = file->Append(text); !status.ok()) return status;
  if (Status status = file->Close(); !status.ok()) return status;
  return file->Commit();
}

bool Contains(const Status& status, const std::string& part) {
  return status.message().find(part) != std::string::npos &&
         status.message().find('\n') == std::string::npos;
}

TEST(OutputFile, ReplacesTheTargetAtCommit) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "f", "old");
  Result<OutputFile> file = OutputFile::Create(folder / "f", 1 << 20);
  ASSERT_TRUE(file.ok()) << file.status().message();
  const std::string text(600000, 'n');  // more than is buffered
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(file->Append(text.substr(i * 200000, 200000)).ok());
  ASSERT_TRUE(file->AppendZeros(5000).ok());
  EXPECT_EQ(ReadWholeFile(folder / "f"), "old");
  EXPECT_EQ(folder.List().size(), 2u);
  ASSERT_TRUE(file->Close().ok());
  EXPECT_EQ(ReadWholeFile(folder / "f"), "old");
  ASSERT_TRUE(file->Commit().ok());
  EXPECT_EQ(ReadWholeFile(folder / "f"),
            text + std::string(5000, '\0'));  // what was reserved is gone
  EXPECT_EQ(folder.List(), Names({"f"}));
  EXPECT_FALSE(file->Append(text).ok());
  EXPECT_FALSE(file->Commit().ok());
  EXPECT_TRUE(SyncFolderOf(folder / "f").ok());
}

TEST(OutputFile, LeavesNothingWithoutCommit) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "f", "old");
  {
    Result<OutputFile> file = OutputFile::Create(folder / "f");
    ASSERT_TRUE(file->Append(std::string("new")).ok());
    OutputFile moved = *std::move(file);
    ASSERT_TRUE(moved.Close().ok());
    EXPECT_EQ(folder.List().size(), 2u);
  }
  EXPECT_EQ(folder.List(), Names({"f"}));
  EXPECT_EQ(ReadWholeFile(folder / "f"), "old");
}

TEST(OutputFile, KeepsThePermissionsOfWhatItReplaces) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "f", "old");
  chmod((folder / "f").c_str(), 0640);
  ASSERT_TRUE(WriteFile(folder / "f", "new").ok());
  struct stat info;
  ASSERT_EQ(stat((folder / "f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST(OutputFile, ReplacesALinkAndNotWhatItPointsTo) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "blob", "kept");
  std::filesystem::create_symlink("blob", folder / "link");
  ASSERT_TRUE(WriteFile(folder / "link", "new").ok());
  EXPECT_EQ(ReadWholeFile(folder / "blob"), "kept");
  EXPECT_EQ(ReadWholeFile(folder / "link"), "new");
}

TEST(OutputFile, LongNames) {
  const TemporaryFolder folder;
  const std::string name(255, 'x');
  EXPECT_TRUE(WriteFile(folder / name, "text").ok());
  EXPECT_EQ(folder.List(), Names({name}));
  EXPECT_FALSE(WriteFile(folder / (name + "x"), "text").ok());
  EXPECT_EQ(folder.List(), Names({name}));
}

TEST(OutputFile, ImpossibleTargets) {
  const TemporaryFolder folder;
  const auto expect = [&](const std::string& path, StatusCode code, const std::string& part) {
    const Status status = WriteFile(path, "text");
    EXPECT_EQ(status.code(), code) << status.message();
    EXPECT_TRUE(Contains(status, part)) << status.message();
    EXPECT_TRUE(Contains(status, path)) << status.message();
  };
  expect(folder / "none/f", StatusCode::kNotFound, "No such file or directory");
  expect(folder.path(), StatusCode::kInvalidArgument, "is a folder");
  expect(folder / "", StatusCode::kInvalidArgument, "is a folder");
  expect("/dev/null", StatusCode::kInvalidArgument, "not a regular file");
  WriteWholeFile(folder / "file", "text");
  EXPECT_FALSE(WriteFile(folder / "file/f", "text").ok());
  EXPECT_FALSE(OutputFile::Create("").ok());
  EXPECT_EQ(folder.List(), Names({"file"}));
}

// Runs `body` in a child as an ordinary user (root may write anywhere); its exit status.
template <class Body>
int InChild(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

bool Succeeded(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }

TEST(OutputFile, NoPermission) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "read-only", "old");
  chmod((folder / "read-only").c_str(), 0444);
  std::filesystem::create_directory(folder / "closed");
  chmod((folder / "closed").c_str(), 0555);
  chmod(folder.path().c_str(), 0777);
  EXPECT_TRUE(Succeeded(InChild([&] {
    if (geteuid() == 0 && setuid(65534) != 0) _exit(1);
    Status status = WriteFile(folder / "read-only", "new");
    if (status.ok() || !Contains(status, "cannot replace")) _exit(2);
    status = WriteFile(folder / "closed/f", "new");
    if (status.ok() || !Contains(status, "cannot write in its folder")) _exit(3);
  })));
  EXPECT_EQ(ReadWholeFile(folder / "read-only"), "old");
  EXPECT_EQ(folder.List(), Names({"closed", "read-only"}));
}

TEST(OutputFile, NotEnoughSpaceIsSaidFirst) {
  const TemporaryFolder folder;
  const uint64_t too_much = uint64_t{1} << 60;
  const Status status = WriteFile(folder / "f", "text", too_much);
  EXPECT_EQ(status.code(), StatusCode::kIo);
  EXPECT_TRUE(Contains(status, "for 1152921504606846976 bytes")) << status.message();
  EXPECT_FALSE(CheckFreeSpace(folder / "f", too_much).ok());
  EXPECT_TRUE(CheckFreeSpace(folder / "f", 1).ok());
  EXPECT_TRUE(folder.List().empty());
}

TEST(OutputFile, WritingFailsAtALimit) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "f", "old");
  EXPECT_TRUE(Succeeded(InChild([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(1);
    Result<OutputFile> file = OutputFile::Create(folder / "f");
    if (!file.ok()) _exit(2);
    const std::string piece(300000, 'x');
    Status status;
    for (int i = 0; i < 4 && status.ok(); ++i) status = file->Append(piece);
    if (status.ok() || !Contains(status, "cannot write: File too large")) _exit(3);
    // Nothing can be saved by going on.
    if (file->Append(std::string("x")).ok() || file->Close().ok() || file->Commit().ok()) _exit(4);
    if (folder.List() != Names({"f"})) _exit(5);
  })));
  EXPECT_EQ(ReadWholeFile(folder / "f"), "old");
  EXPECT_EQ(folder.List(), Names({"f"}));
}

TEST(OutputFile, FullDisk) {
  const TemporaryFolder folder;
  if (mount("none", folder.path().c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "needs the right to mount a file system";
  }
  WriteWholeFile(folder / "f", "old");
  // Known beforehand.
  Status status = WriteFile(folder / "f", "text", 2 << 20);
  EXPECT_TRUE(Contains(status, "no space left")) << status.message();
  EXPECT_TRUE(Contains(status, "for 2097152 bytes")) << status.message();
  EXPECT_EQ(folder.List(), Names({"f"}));
  // Found out while writing.
  status = WriteFile(folder / "f", std::string(2 << 20, 'x'));
  EXPECT_TRUE(Contains(status, "no space left")) << status.message();
  EXPECT_EQ(folder.List(), Names({"f"}));
  // A model.
  const GgufTensorInfo tensor{"t", Format::kF32, {1 << 19}};
  const Result<GgufWriter> writer = GgufWriter::Create(folder / "f", {}, {tensor});
  EXPECT_TRUE(Contains(writer.status(), "no space left")) << writer.status().message();
  // Shards are counted together.
  const GgufTensorInfo half{"u", Format::kF32, {1 << 17}};
  const GgufTensorInfo other{"v", Format::kF32, {1 << 17}};
  const GgufWriteOptions shards{.max_shard_bytes = 600000};
  EXPECT_FALSE(GgufWriter::Create(folder / "s.gguf", {}, {half, other}, shards).ok());
  EXPECT_EQ(folder.List(), Names({"f"}));
  EXPECT_EQ(ReadWholeFile(folder / "f"), "old");
  umount(folder.path().c_str());
}

// Begins to replace `path` in a child process, then calls `end` there; the child's status.
template <class End>
int DieWhileWriting(const std::string& path, const End& end) {
  return InChild([&] {
    Result<OutputFile> file = OutputFile::Create(path);
    if (!file.ok() || !file->Append(std::string(1 << 20, 'x')).ok()) _exit(1);
    end();
  });
}

TEST(OutputFile, AKilledProcessLeavesTheOldFile) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "f", "old");
  const int status = DieWhileWriting(folder / "f", [] { raise(SIGKILL); });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_EQ(ReadWholeFile(folder / "f"), "old");
  const Names names = folder.List();
  ASSERT_EQ(names.size(), 2u);  // and a temporary file that says so in its name
  EXPECT_TRUE(names[0].starts_with(".f.") && names[0].ends_with(".tmp")) << names[0];
}

TEST(OutputFile, AnInterruptedProcessLeavesNothing) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "f", "old");
  const int status = DieWhileWriting(folder / "f", [&] {
    std::signal(SIGINT, [](int number) {
      RemoveTemporaryFiles();
      std::signal(number, SIG_DFL);
      raise(number);
    });
    Result<OutputFile> second = OutputFile::Create(folder / "g");
    Result<OutputFile> done = OutputFile::Create(folder / "h");
    if (!second.ok() || !done->Close().ok() || !done->Commit().ok()) _exit(1);
    raise(SIGINT);
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
  EXPECT_EQ(folder.List(), Names({"f", "h"}));  // what was committed stays
  EXPECT_EQ(ReadWholeFile(folder / "f"), "old");
}

TEST(OutputFile, ManyThreadsWrite) {
  const TemporaryFolder folder;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        const std::string name = std::to_string(t) + "-" + std::to_string(i);
        EXPECT_TRUE(WriteFile(folder / name, name).ok());
        EXPECT_TRUE(WriteFile(folder / "shared", "always whole").ok());
        EXPECT_EQ(ReadWholeFile(folder / "shared"), "always whole");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(folder.List().size(), 81u);
  EXPECT_EQ(ReadWholeFile(folder / "7-9"), "7-9");
}

}  // namespace
}  // namespace nibble
