// Sensitivities as JSON.
#include <cmath>
#include <string>
#include <utility>

#include "lib/io/output_file.h"
#include "lib/model/json_file.h"
#include "nibble/budget.h"

namespace nibble {
namespace {

constexpr uint64_t kMostBytes = uint64_t{64} << 20;
constexpr int64_t kVersion = 1;

Result<Format> FormatNamed(const std::string& name, const std::string& where) {
  const FormatInfo* info = FindFormat(name);
  if (info == nullptr) return Corrupt(where + ": no format is called " + Printable(name));
  return info->format;
}

// A number that an error or a divergence can be.
bool IsLoss(const nlohmann::json& json) {
  if (!json.is_number()) return false;
  const double value = json.get<double>();
  return std::isfinite(value) && value >= 0;
}

Result<MatrixSensitivity> ParseMatrix(const nlohmann::json& json, const std::string& file) {
  if (!json.is_object()) return Corrupt(file + ": a matrix is no object");
  const JsonObject object(json, file);
  MatrixSensitivity matrix;
  NIBBLE_ASSIGN_OR_RETURN(matrix.name, object.StringOr("name", ""));
  const std::string where = file + ": " + Printable(matrix.name);
  NIBBLE_ASSIGN_OR_RETURN(const std::string probe, object.StringOr("probe", ""));
  NIBBLE_ASSIGN_OR_RETURN(matrix.probe, FormatNamed(probe, where));
  NIBBLE_ASSIGN_OR_RETURN(matrix.share, object.PositiveOr("share", 1));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject errors, object.ObjectOr("errors"));
  for (const auto& [name, error] : errors.json().items()) {
    NIBBLE_ASSIGN_OR_RETURN(const Format format, FormatNamed(name, where));
    if (!IsLoss(error))
      return Corrupt(where + ": the error of " + name + " is no number from 0 on");
    matrix.errors.push_back({format, error.get<double>()});
  }
  if (const nlohmann::json* kl = object.Find("kl"); kl != nullptr) {
    if (!IsLoss(*kl)) return Corrupt(where + ": the divergence is no number from 0 on");
    matrix.kl = kl->get<double>();
  }
  return matrix;
}

}  // namespace

Status Sensitivity::Save(const std::string& path) const {
  nlohmann::ordered_json document = {{"version", kVersion}, {"source", source}};
  if (!importance.empty()) document["importance"] = importance;
  if (!text.empty()) document["text"] = text;
  document["matrices"] = nlohmann::ordered_json::array();
  for (const MatrixSensitivity& matrix : matrices) {
    nlohmann::ordered_json json = {{"name", matrix.name},
                                   {"share", matrix.share},
                                   {"probe", GetFormatInfo(matrix.probe).name}};
    for (const FormatError& error : matrix.errors) {
      json["errors"][GetFormatInfo(error.format).name] = error.error;
    }
    if (matrix.kl) json["kl"] = *matrix.kl;
    document["matrices"].push_back(std::move(json));
  }
  NIBBLE_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path));
  NIBBLE_RETURN_IF_ERROR(file.Append(document.dump(1) + "\n"));
  NIBBLE_RETURN_IF_ERROR(file.Close());
  return file.Commit();
}

Result<Sensitivity> Sensitivity::Load(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Load(path, kMostBytes));
  NIBBLE_RETURN_IF_ERROR(object.Integer("version", kVersion, kVersion).status());
  Sensitivity result;
  NIBBLE_ASSIGN_OR_RETURN(result.source, object.StringOr("source", ""));
  NIBBLE_ASSIGN_OR_RETURN(result.importance, object.StringOr("importance", ""));
  NIBBLE_ASSIGN_OR_RETURN(result.text, object.StringOr("text", ""));
  const nlohmann::json* matrices = object.Find("matrices");
  if (matrices == nullptr || !matrices->is_array()) {
    return Corrupt(path + ": has no list of matrices");
  }
  for (const nlohmann::json& json : *matrices) {
    NIBBLE_ASSIGN_OR_RETURN(MatrixSensitivity matrix, ParseMatrix(json, path));
    result.matrices.push_back(std::move(matrix));
  }
  return result;
}

}  // namespace nibble
