#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "lib/core/c_api.h"
#include "lib/quantize/c_api_hessian.h"
#include "nibble/hessian_file.h"

using nibble::CalibrationNote;
using nibble::HessianFile;
using nibble::HessianWriter;
using nibble::InvalidArgument;
using nibble::NotFound;
using nibble::OkStatus;
using nibble::SharedInputs;
using nibble::Status;
using nibble::c_api::Call;
using nibble::c_api::CheckPointer;
using nibble::c_api::Release;

struct nibble_hessian_file {
  HessianFile value;
  std::vector<std::vector<const char*>> matrices;  // of each inputs, as C sees them
};

struct nibble_hessian_writer {
  HessianWriter value;
};

namespace {

template <class List>
Status CheckPlace(size_t index, const List& list, const char* what) {
  if (index < list.size()) return OkStatus();
  return NotFound(std::string("no ") + what + " " + std::to_string(index) + " among " +
                  std::to_string(list.size()));
}

nibble::Result<SharedInputs> ToInputs(const nibble_shared_inputs& inputs) {
  SharedInputs result;
  result.cols = inputs.cols;
  if (inputs.matrix_count > 0) NIBBLE_RETURN_IF_ERROR(CheckPointer(inputs.matrices, "matrices"));
  for (size_t i = 0; i < inputs.matrix_count; ++i) {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(inputs.matrices[i], "a matrix's name"));
    result.matrices.emplace_back(inputs.matrices[i]);
  }
  return result;
}

nibble::Result<CalibrationNote> ToNote(const nibble_calibration_note& note) {
  NIBBLE_RETURN_IF_ERROR(CheckPointer(note.text, "a text's name"));
  // As HessianFile reads them.
  if (note.context < 0 || note.windows < 0 || note.context > UINT32_MAX ||
      note.windows > UINT32_MAX) {
    return InvalidArgument(std::string(note.text) + ": " + std::to_string(note.windows) +
                           " windows of " + std::to_string(note.context) + " tokens");
  }
  return CalibrationNote{note.text, note.hash == nullptr ? "" : note.hash, note.context,
                         note.windows};
}

}  // namespace

extern "C" {

nibble_status nibble_hessian_file_open(const char* path, nibble_hessian_file** file,
                                       nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(path, "path"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_ASSIGN_OR_RETURN(HessianFile opened, HessianFile::Open(path));
    std::vector<std::vector<const char*>> matrices;
    for (const SharedInputs& inputs : opened.inputs()) {
      matrices.emplace_back();
      for (const std::string& name : inputs.matrices) matrices.back().push_back(name.c_str());
    }
    *file = new nibble_hessian_file{std::move(opened), std::move(matrices)};
    return OkStatus();
  });
}

size_t nibble_hessian_file_count(const nibble_hessian_file* file) {
  return file->value.inputs().size();
}

nibble_status nibble_hessian_file_at(const nibble_hessian_file* file, size_t index,
                                     nibble_shared_inputs* inputs, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(inputs, "inputs"));
    NIBBLE_RETURN_IF_ERROR(CheckPlace(index, file->value.inputs(), "Hessian"));
    const auto& matrices = file->matrices[index];
    *inputs = {matrices.data(), matrices.size(), file->value.inputs()[index].cols};
    return OkStatus();
  });
}

nibble_status nibble_hessian_file_find(const nibble_hessian_file* file, const char* matrix,
                                       size_t* index, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(matrix, "matrix"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(index, "index"));
    const SharedInputs* found = file->value.Find(matrix);
    if (found == nullptr) {
      return NotFound(file->value.path() + ": no Hessian for '" + std::string(matrix) + "'");
    }
    *index = static_cast<size_t>(found - file->value.inputs().data());
    return OkStatus();
  });
}

size_t nibble_hessian_file_text_count(const nibble_hessian_file* file) {
  return file->value.texts().size();
}

nibble_status nibble_hessian_file_text_at(const nibble_hessian_file* file, size_t index,
                                          nibble_calibration_note* note, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(note, "note"));
    NIBBLE_RETURN_IF_ERROR(CheckPlace(index, file->value.texts(), "text"));
    const CalibrationNote& text = file->value.texts()[index];
    *note = {text.text.c_str(), text.hash.c_str(), text.context, text.windows};
    return OkStatus();
  });
}

nibble_status nibble_hessian_file_read(const nibble_hessian_file* file, size_t index,
                                       nibble_hessian** hessian, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(file, "file"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    NIBBLE_RETURN_IF_ERROR(CheckPlace(index, file->value.inputs(), "Hessian"));
    return Release(file->value.Read(file->value.inputs()[index]), hessian);
  });
}

void nibble_hessian_file_close(nibble_hessian_file* file) { delete file; }

nibble_status nibble_hessian_files_merge(const nibble_hessian_file* const* files, size_t count,
                                         const char* path, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(files, "files"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(path, "path"));
    std::vector<HessianFile> opened;
    std::vector<CalibrationNote> texts;
    for (size_t i = 0; i < count; ++i) {
      NIBBLE_RETURN_IF_ERROR(CheckPointer(files[i], "a file"));
      opened.push_back(files[i]->value);
      texts.insert(texts.end(), opened.back().texts().begin(), opened.back().texts().end());
      std::error_code ignored;
      if (std::filesystem::equivalent(opened.back().path(), path, ignored)) {
        return InvalidArgument(std::string(path) + ": one of the files to merge");
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto inputs, nibble::MergedInputs(opened));
    NIBBLE_ASSIGN_OR_RETURN(HessianWriter writer, HessianWriter::Create(path, inputs, texts));
    for (const SharedInputs& shared : inputs) {
      NIBBLE_ASSIGN_OR_RETURN(const nibble::Hessian sum, nibble::MergedHessian(opened, shared));
      NIBBLE_RETURN_IF_ERROR(writer.Append(sum));
    }
    return writer.Finish();
  });
}

nibble_status nibble_hessian_writer_create(const char* path, const nibble_shared_inputs* inputs,
                                           size_t inputs_count,
                                           const nibble_calibration_note* notes, size_t notes_count,
                                           nibble_hessian_writer** writer, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(path, "path"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(writer, "writer"));
    if (inputs_count > 0) NIBBLE_RETURN_IF_ERROR(CheckPointer(inputs, "inputs"));
    if (notes_count > 0) NIBBLE_RETURN_IF_ERROR(CheckPointer(notes, "notes"));
    std::vector<SharedInputs> all;
    for (size_t i = 0; i < inputs_count; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(SharedInputs shared, ToInputs(inputs[i]));
      all.push_back(std::move(shared));
    }
    std::vector<CalibrationNote> texts;
    for (size_t i = 0; i < notes_count; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(CalibrationNote note, ToNote(notes[i]));
      texts.push_back(std::move(note));
    }
    return Release(HessianWriter::Create(path, std::move(all), texts), writer);
  });
}

nibble_status nibble_hessian_writer_append(nibble_hessian_writer* writer,
                                           const nibble_hessian* hessian, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(writer, "writer"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(hessian, "hessian"));
    return writer->value.Append(hessian->value);
  });
}

nibble_status nibble_hessian_writer_finish(nibble_hessian_writer* writer, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(writer, "writer"));
    return writer->value.Finish();
  });
}

void nibble_hessian_writer_free(nibble_hessian_writer* writer) { delete writer; }

}  // extern "C"
