#include "nibble/evaluation.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "lib/io/errors.h"
#include "nibble/model_source.h"

namespace nibble {
namespace {

constexpr int64_t kUsualContext = 512;
// Of one token that is decoded, where one that is read with many others costs 1; roughly.
constexpr double kDecodeCost = 10;

// Steps with their share of the work, which is counted in tokens.
class Work {
 public:
  Work(const EvaluateOptions& options, double total) : options_(options), total_(total) {}

  void Begin(std::string_view step, std::string_view model, double cost) {
    done_ += cost_;
    cost_ = cost;
    step_ = step;
    model_ = model;
  }
  // `share` of the current step is done.
  bool Report(double share) const {
    if (!options_.progress) return true;
    const double fraction = std::min(1.0, (done_ + share * cost_) / std::max(total_, 1.0));
    return options_.progress({fraction, step_, model_});
  }
  Status Check() const { return Report(0) ? OkStatus() : Cancelled("stopped"); }

 private:
  const EvaluateOptions& options_;
  double total_, done_ = 0, cost_ = 0;
  std::string_view step_, model_;
};

// The models of an evaluation, the reference first.
class Evaluator {
 public:
  Evaluator(const std::string& reference, std::span<const std::string> models,
            const EvaluateOptions& options)
      : options_(options), paths_{reference} {
    paths_.insert(paths_.end(), models.begin(), models.end());
    evaluations_.resize(paths_.size());
  }

  Result<Evaluation> Run() {
    NIBBLE_RETURN_IF_ERROR(Check());
    Work work(options_, TotalCost());
    for (size_t i = 0; i < paths_.size(); ++i) {
      NIBBLE_RETURN_IF_ERROR(Describe(i, work).WithContext(paths_[i]));
    }
    if (options_.measure_speed) {
      for (size_t i = 0; i < paths_.size(); ++i) {
        NIBBLE_RETURN_IF_ERROR(Time(i, work).WithContext(paths_[i]));
      }
    }
    std::vector<Model> models;
    for (const std::string& path : paths_) {
      NIBBLE_ASSIGN_OR_RETURN(Model model, Model::Load(path));
      models.push_back(std::move(model));
    }
    if (!tokens_.empty()) NIBBLE_RETURN_IF_ERROR(ReadText(models, work));
    for (size_t i = 0; i < paths_.size() && !options_.tasks.empty(); ++i) {
      NIBBLE_RETURN_IF_ERROR(DoTasks(models[i], i, work).WithContext(paths_[i]));
    }
    for (ModelEvaluation& model : evaluations_) {
      if (&model == &evaluations_[0]) continue;
      for (size_t t = 0; t < model.tasks.size(); ++t) {
        model.task_drops.push_back(AccuracyDrop(evaluations_[0].tasks[t], model.tasks[t]));
      }
      model.criteria = Judge(model, evaluations_[0], options_.thresholds);
    }
    Evaluation result;
    result.has_text = !tokens_.empty();
    result.has_speed = options_.measure_speed;
    result.context = context_;
    result.reference = std::move(evaluations_[0]);
    std::move(evaluations_.begin() + 1, evaluations_.end(), std::back_inserter(result.models));
    return result;
  }

 private:
  // Everything that can be refused before the work.
  Status Check() {
    if (paths_.size() < 2) return InvalidArgument("there is no model beside the reference");
    NIBBLE_ASSIGN_OR_RETURN(const Model reference, Model::Load(paths_[0]));
    context_ = options_.perplexity.context;
    int64_t shortest = reference.config().context;
    for (const std::string& path : paths_) {
      NIBBLE_ASSIGN_OR_RETURN(const Model model, Model::Load(path));
      const auto check = [&]() -> Status {
        NIBBLE_RETURN_IF_ERROR(CheckSameVocabulary(reference.tokenizer(), model.tokenizer()));
        if (model.config().vocab_size != reference.config().vocab_size) {
          return InvalidArgument("its output has " + std::to_string(model.config().vocab_size) +
                                 " rows, the reference's " +
                                 std::to_string(reference.config().vocab_size));
        }
        return CheckTasks(model, options_.tasks);
      };
      NIBBLE_RETURN_IF_ERROR(check().WithContext(path));
      shortest = std::min(shortest, model.config().context);
    }
    if (options_.text.empty()) return OkStatus();
    if (context_ == 0) context_ = std::min(kUsualContext, shortest);
    TokenizeOptions tokenize;
    tokenize.add_special = options_.perplexity.scoring == Scoring::kSecondHalf;
    NIBBLE_ASSIGN_OR_RETURN(tokens_, reference.tokenizer().Encode(options_.text, tokenize));
    if (static_cast<int64_t>(tokens_.size()) < context_ || context_ > shortest) {
      return InvalidArgument("the text of " + std::to_string(tokens_.size()) +
                             " tokens cannot be cut into windows of " + std::to_string(context_) +
                             "; the models take up to " + std::to_string(shortest));
    }
    return OkStatus();
  }

  double TextCost() const {
    double tokens = static_cast<double>(tokens_.size());
    if (options_.perplexity.max_windows > 0) {
      tokens = std::min(tokens, static_cast<double>(options_.perplexity.max_windows * context_));
    }
    return tokens * static_cast<double>(paths_.size());
  }
  double SpeedCost() const {
    const SpeedOptions& speed = options_.speed;
    return static_cast<double>((speed.warmups + speed.runs) * speed.sequences) *
           (static_cast<double>(speed.prompt_tokens) +
            kDecodeCost * static_cast<double>(speed.decode_tokens));
  }
  double TaskCost() const {
    constexpr double kBytesPerToken = 3;
    double cost = 0;
    for (const Task& task : options_.tasks) {
      for (const TaskItem& item : task.items) {
        cost += static_cast<double>(item.prompt.size()) / kBytesPerToken;
        for (const std::string& option : item.options) {
          cost += static_cast<double>(option.size()) / kBytesPerToken;
        }
        if (item.options.empty()) cost += kDecodeCost * static_cast<double>(item.max_tokens);
      }
    }
    return cost;
  }
  double TotalCost() const {
    const double each = TaskCost() + (options_.measure_speed ? SpeedCost() : 0);
    return TextCost() + each * static_cast<double>(paths_.size());
  }

  // Sizes, and the error of each matrix.
  Status Describe(size_t index, Work& work) {
    ModelEvaluation& result = evaluations_[index];
    result.path = paths_[index];
    NIBBLE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Open(paths_[index]));
    result.file_bytes = source.file_bytes();
    uint64_t bytes = 0;
    for (const ModelTensor& tensor : source.tensors()) {
      NIBBLE_ASSIGN_OR_RETURN(const size_t size,
                              FormatBytes(tensor.format, tensor.rows(), tensor.cols()));
      bytes += size;
      result.weights += static_cast<uint64_t>(tensor.rows() * tensor.cols());
    }
    if (result.weights > 0) {
      result.bits_per_weight =
          8.0 * static_cast<double>(bytes) / static_cast<double>(result.weights);
    }
    if (index == 0 || !options_.compare_tensors) return OkStatus();
    work.Begin("tensors", paths_[index], 0);
    NIBBLE_ASSIGN_OR_RETURN(const ModelSource reference, ModelSource::Open(paths_[0]));
    for (const ModelTensor& tensor : reference.tensors()) {
      NIBBLE_RETURN_IF_ERROR(work.Check());
      const ModelTensor* other = source.Find(tensor.name);
      if (other == nullptr || tensor.dims.size() < 2 ||
          !GetFormatInfo(tensor.format).can_decode() ||
          !GetFormatInfo(other->format).can_decode()) {
        continue;
      }
      Result<ErrorSums> error =
          CompareTensors(reference, tensor, source, *other, options_.runner.parallel);
      if (!error.ok()) return std::move(error).status().WithContext(tensor.name);
      result.tensors.push_back({tensor.name, other->format, *std::move(error)});
    }
    return OkStatus();
  }

  // Alone in memory, so that the peak is this model's.
  Status Time(size_t index, Work& work) {
    work.Begin("speed", paths_[index], SpeedCost());
    NIBBLE_RETURN_IF_ERROR(work.Check());
    const bool counts = ResetPeakMemory();
    NIBBLE_ASSIGN_OR_RETURN(const Model model, Model::Load(paths_[index]));
    SpeedOptions speed = options_.speed;
    speed.runner = options_.runner;
    speed.cache = options_.cache;
    speed.progress = [&](int done, int runs) {
      return work.Report(static_cast<double>(done) / runs);
    };
    ModelEvaluation& result = evaluations_[index];
    NIBBLE_ASSIGN_OR_RETURN(result.speed, MeasureSpeed(model, speed));
    if (counts) result.peak_memory_bytes = PeakMemoryBytes();
    return OkStatus();
  }

  Status ReadText(const std::vector<Model>& models, Work& work) {
    work.Begin("perplexity", {}, TextCost());
    PerplexityOptions perplexity = options_.perplexity;
    perplexity.context = context_;
    perplexity.runner = options_.runner;
    perplexity.cache = options_.cache;
    perplexity.reference = &models[0];
    perplexity.progress = [&](int64_t done, int64_t windows, double) {
      return work.Report(static_cast<double>(done) / static_cast<double>(windows));
    };
    std::vector<const Model*> others;
    for (size_t i = 1; i < models.size(); ++i) others.push_back(&models[i]);
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<PerplexityResult> results,
                            Perplexities(others, tokens_, perplexity));
    for (size_t i = 1; i < models.size(); ++i) evaluations_[i].perplexity = results[i - 1];
    PerplexityResult& own = evaluations_[0].perplexity;
    own = results[0];
    own.perplexity = results[0].divergence.reference_perplexity;
    own.mean_nll = {std::log(own.perplexity.value), own.perplexity.error / own.perplexity.value};
    own.has_divergence = false;
    own.divergence = {};
    return OkStatus();
  }

  Status DoTasks(const Model& model, size_t index, Work& work) {
    work.Begin("tasks", paths_[index], TaskCost());
    TaskOptions tasks;
    tasks.runner = options_.runner;
    tasks.cache = options_.cache;
    tasks.progress = [&](int64_t done, int64_t items) {
      return work.Report(static_cast<double>(done) / static_cast<double>(items));
    };
    NIBBLE_ASSIGN_OR_RETURN(evaluations_[index].tasks, RunTasks(model, options_.tasks, tasks));
    return OkStatus();
  }

  const EvaluateOptions& options_;
  std::vector<std::string> paths_;
  std::vector<ModelEvaluation> evaluations_;
  std::vector<int32_t> tokens_;  // of the text
  int64_t context_ = 0;
};

}  // namespace

bool ModelEvaluation::passed() const {
  return std::all_of(criteria.begin(), criteria.end(),
                     [](const Criterion& criterion) { return criterion.passed(); });
}

std::vector<Criterion> Judge(const ModelEvaluation& model, const ModelEvaluation& reference,
                             const Thresholds& thresholds) {
  std::vector<Criterion> criteria;
  if (model.perplexity.has_divergence) {
    const Divergence& d = model.perplexity.divergence;
    // The errors of the two perplexities go along with each other; that of their ratio does not.
    const double ratio_error = std::exp(d.log_ratio.value) * d.log_ratio.error;
    const double base = d.reference_perplexity.value;
    const double increase = model.perplexity.perplexity.value - base;
    criteria.push_back({Criterion::Kind::kPerplexityIncrease,
                        "",
                        {increase, base * ratio_error},
                        thresholds.perplexity_increase});
    if (thresholds.perplexity_share > 0) {
      criteria.push_back({Criterion::Kind::kPerplexityShare,
                          "",
                          {increase / base, ratio_error},
                          thresholds.perplexity_share});
    }
  }
  for (size_t t = 0; t < model.tasks.size(); ++t) {
    criteria.push_back({Criterion::Kind::kTaskDrop, model.tasks[t].name,
                        AccuracyDrop(reference.tasks[t], model.tasks[t]), thresholds.task_drop});
  }
  return criteria;
}

Status CheckSameVocabulary(const Tokenizer& reference, const Tokenizer& other) {
  if (reference.vocab_size() != other.vocab_size()) {
    return InvalidArgument("its vocabulary has " + std::to_string(other.vocab_size()) +
                           " tokens, the reference's " + std::to_string(reference.vocab_size()));
  }
  for (int32_t token = 0; token < reference.vocab_size(); ++token) {
    const std::string theirs = reference.Piece(token), own = other.Piece(token);
    if (own != theirs) {
      return InvalidArgument("its vocabulary is not the reference's: token " +
                             std::to_string(token) + " is " + Quoted(own) + " instead of " +
                             Quoted(theirs));
    }
  }
  return OkStatus();
}

Result<Evaluation> Evaluate(const std::string& reference, std::span<const std::string> models,
                            const EvaluateOptions& options) {
  return Evaluator(reference, models, options).Run();
}

}  // namespace nibble
