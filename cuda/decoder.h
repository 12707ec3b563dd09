// What a decoder computes between its matrix products: the whole kernels but for their barriers,
// for device and host.
#ifndef NIBBLE_CUDA_DECODER_H_
#define NIBBLE_CUDA_DECODER_H_

#include <cmath>
#include <cstdint>

#include "cuda/async_copy.h"
#include "cuda/cache_row.h"
#include "cuda/decode_record.h"
#include "cuda/product_member.h"
#include "cuda/warp.h"
#include "nibble/decoder_backend.h"

namespace nibble::cuda {

constexpr float kMinusInfinity = -__builtin_huge_valf();

// --- Norms

template <class Warp>
NIBBLE_HD inline float SumOfLanes(const Warp& warp, typename Warp::template Lanes<float> values) {
  return ReduceLanes(warp, values, [](float a, float b) { return a + b; });
}

NIBBLE_HD inline float InverseRoot(float squares, int64_t count, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(count) + eps);
}

// A block's row: first every warp adds squares, then, behind a barrier, every thread writes.
struct RmsNormRow {
  const float* x;
  const float* weight;
  int64_t width;
  float eps;
  float* out;

  template <class Warp>
  NIBBLE_HD void AddSquares(const Warp& warp, int index, float* shared) const {
    typename Warp::template Lanes<float> squares;
    warp.Each([&](int lane) {
      float sum = 0;
      for (int64_t i = kLanes * index + lane; i < width; i += kThreads) {
        sum = MultiplyAdd(x[i], x[i], sum);
      }
      squares[lane] = sum;
    });
    const float sum = SumOfLanes(warp, squares);
    warp.Each([&](int lane) {
      if (lane == 0) shared[index] = sum;
    });
  }

  NIBBLE_HD void Write(int thread, const float* shared) const {
    float squares = 0;
    for (int w = 0; w < kWarps; ++w) squares += shared[w];
    const float scale = InverseRoot(squares, width, eps);
    for (int64_t i = thread; i < width; i += kThreads) out[i] = x[i] * scale * weight[i];
  }
};

// --- Activations

NIBBLE_HD inline float Gated(Activation activation, float gate, float up) {
  if (activation == Activation::kSilu) return gate / (1.0f + expf(-gate)) * up;
  constexpr float kRoot = 0.79788456080286535588f, kCubic = 0.044715f;
  return 0.5f * gate * (1.0f + tanhf(kRoot * gate * (kCubic * gate * gate + 1.0f))) * up;
}

NIBBLE_HD inline float SoftCapped(float x, float cap) { return cap * tanhf(x * (1.0f / cap)); }

// --- Heads

// Where a layer's keys and values of a head lie in a page.
NIBBLE_HD inline uint8_t* KeysOf(const AttentionLayer& a, std::byte* page, int64_t kv_head) {
  return reinterpret_cast<uint8_t*>(page) + a.offset +
         static_cast<size_t>(kv_head * a.page_tokens) * a.key_row;
}
NIBBLE_HD inline uint8_t* ValuesOf(const AttentionLayer& a, std::byte* page, int64_t kv_head) {
  return reinterpret_cast<uint8_t*>(page) + a.offset +
         static_cast<size_t>(a.kv_heads * a.page_tokens) * a.key_row +
         static_cast<size_t>(kv_head * a.page_tokens) * a.value_row;
}

// A warp: norms (unless null), turns and scales a head, in place.
template <class Warp>
NIBBLE_HD inline void TurnHead(const Warp& warp, const AttentionLayer& a, const float* norm,
                               const float* cosines, const float* sines, float scale, float* x) {
  float inverse = 1.0f;
  if (norm != nullptr) {
    typename Warp::template Lanes<float> squares;
    warp.Each([&](int lane) {
      float sum = 0;
      for (int64_t i = lane; i < a.head_dim; i += kLanes) sum = MultiplyAdd(x[i], x[i], sum);
      squares[lane] = sum;
    });
    inverse = InverseRoot(SumOfLanes(warp, squares), a.head_dim, a.norm_eps);
  }
  const auto normed = [&](int64_t i) { return norm == nullptr ? x[i] : x[i] * inverse * norm[i]; };
  warp.Each([&](int lane) {
    for (int64_t pair = lane; pair < a.pairs; pair += kLanes) {
      const int64_t i = a.half_split ? pair : 2 * pair, j = a.half_split ? pair + a.pairs : i + 1;
      const float u = normed(i), v = normed(j);
      x[i] = (u * cosines[pair] - v * sines[pair]) * scale;
      x[j] = (u * sines[pair] + v * cosines[pair]) * scale;
    }
    for (int64_t i = 2 * a.pairs + lane; i < a.head_dim; i += kLanes) x[i] = normed(i) * scale;
  });
}

// A warp: head `head` of row `row`, the heads of keys and values after those of queries.
template <class Warp>
NIBBLE_HD inline void StoreHead(const Warp& warp, const DecoderBatch& batch,
                                const AttentionLayer& a, int64_t row, int64_t head, float* query,
                                float* key, const float* value) {
  const float* cosines = batch.cosines + row * a.pairs;
  const float* sines = batch.sines + row * a.pairs;
  if (head < a.heads) {
    TurnHead(warp, a, a.query_norm, cosines, sines, a.query_scale,
             query + (row * a.heads + head) * a.head_dim);
    return;
  }
  head -= a.heads;
  float* const k = key + (row * a.kv_heads + head) * a.head_dim;
  TurnHead(warp, a, a.key_norm, cosines, sines, 1.0f, k);
  SyncWarp();
  const int64_t position = batch.positions[row];
  std::byte* const page =
      batch.pages[batch.sequences[row] * batch.most_pages + position / a.page_tokens];
  const size_t slot = static_cast<size_t>(position % a.page_tokens);
  EncodeCacheRow(warp, a.keys, k, a.head_dim, a.largest_key,
                 KeysOf(a, page, head) + slot * a.key_row);
  EncodeCacheRow(warp, a.values, value + (row * a.kv_heads + head) * a.value_dim, a.value_dim,
                 a.largest_value, ValuesOf(a, page, head) + slot * a.value_row);
}

// --- Attention

// The most dimensions of a head of kParts parts of 32.
inline constexpr int kMostHeadDims = 256;

// What a warp of an attention block leaves for the others, in shared memory.
template <int kParts>
struct WarpAttention {
  float maximum, sum;
  float weighted[kLanes * kParts];
};

// A block has one head of one row. Its warps take the keys of each page in turn, some at a time, by
// a running softmax (online softmax, arXiv 1805.02867), lanes having dimensions of the head; then
// the warps' sums are put together, always in the same order.
template <int kParts>
struct AttentionBlock {
  static constexpr int kAtOnce = 4;  // keys of a warp

  const DecoderBatch& batch;
  const AttentionLayer& a;
  int64_t row, head;
  const float* query;
  float* out;

  NIBBLE_HD AttentionBlock(const DecoderBatch& b, const AttentionLayer& layer, int64_t block,
                           const float* queries, float* outputs)
      : batch(b), a(layer), row(block / layer.heads), head(block % layer.heads) {
    query = queries + block * layer.head_dim;
    out = outputs + block * layer.value_dim;
  }

  template <class Warp>
  NIBBLE_HD void AddKeys(const Warp& warp, int index, WarpAttention<kParts>* shared) const {
    struct Dims {
      float v[kParts];
    };
    using Floats = typename Warp::template Lanes<float>;
    typename Warp::template Lanes<Dims> q, weighted;
    warp.Each([&](int lane) {
      NIBBLE_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const int i = kLanes * part + lane;
        q[lane].v[part] = i < a.head_dim ? query[i] : 0.0f;
        weighted[lane].v[part] = 0.0f;
      }
    });
    float maximum = kMinusInfinity, sum = 0;
    const int64_t kv_head = head / (a.heads / a.kv_heads), position = batch.positions[row];
    const int64_t oldest = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
    std::byte* const* pages = batch.pages + batch.sequences[row] * batch.most_pages;
    for (int64_t page = oldest / a.page_tokens; page * a.page_tokens <= position; ++page) {
      const int64_t begin = page * a.page_tokens;
      const uint8_t* keys = KeysOf(a, pages[page], kv_head);
      const uint8_t* values = ValuesOf(a, pages[page], kv_head);
      const int64_t end = Least(a.page_tokens, position + 1 - begin);
      int64_t slot = (oldest > begin ? oldest - begin : 0) + index;
      for (; slot < end; slot += kWarps * kAtOnce) {
        float scores[kAtOnce], largest = maximum;
        NIBBLE_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
          const int64_t at = slot + kWarps * u;
          Floats products;
          warp.Each([&](int lane) {
            float product = 0;
            NIBBLE_UNROLL
            for (int part = 0; part < kParts; ++part) {
              const int i = kLanes * part + lane;
              if (at < end && i < a.head_dim) {
                product = MultiplyAdd(
                    q[lane].v[part],
                    CachedValue(a.keys, keys + static_cast<size_t>(at) * a.key_row, i), product);
              }
            }
            products[lane] = product;
          });
          const float score = SumOfLanes(warp, products);
          scores[u] = at >= end        ? kMinusInfinity
                      : a.soft_cap > 0 ? SoftCapped(score, a.soft_cap)
                                       : score;
          largest = fmaxf(largest, scores[u]);
        }
        const float shrink = expf(maximum - largest);  // 0 for the first keys
        maximum = largest;
        sum *= shrink;
        float weights[kAtOnce];
        NIBBLE_UNROLL
        for (int u = 0; u < kAtOnce; ++u) {
          weights[u] = slot + kWarps * u < end ? expf(scores[u] - maximum) : 0.0f;
          sum += weights[u];
        }
        warp.Each([&](int lane) {
          NIBBLE_UNROLL
          for (int part = 0; part < kParts; ++part) {
            const int i = kLanes * part + lane;
            if (i >= a.value_dim) continue;
            float total = weighted[lane].v[part] * shrink;
            NIBBLE_UNROLL
            for (int u = 0; u < kAtOnce; ++u) {
              const int64_t at = slot + kWarps * u;
              if (at < end) {
                total = MultiplyAdd(
                    weights[u],
                    CachedValue(a.values, values + static_cast<size_t>(at) * a.value_row, i),
                    total);
              }
            }
            weighted[lane].v[part] = total;
          }
        });
      }
    }
    WarpAttention<kParts>& mine = shared[index];
    warp.Each([&](int lane) {
      if (lane == 0) {
        mine.maximum = maximum;
        mine.sum = sum;
      }
      NIBBLE_UNROLL
      for (int part = 0; part < kParts; ++part) {
        mine.weighted[kLanes * part + lane] = weighted[lane].v[part];
      }
    });
  }

  // All threads, behind a barrier.
  NIBBLE_HD void Combine(int thread, const WarpAttention<kParts>* shared) const {
    float maximum = kMinusInfinity;
    for (int w = 0; w < kWarps; ++w) maximum = fmaxf(maximum, shared[w].maximum);
    float factors[kWarps], sum = 0;
    NIBBLE_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      factors[w] = expf(shared[w].maximum - maximum);  // 0 for a warp without keys
      sum = MultiplyAdd(factors[w], shared[w].sum, sum);
    }
    for (int64_t i = thread; i < a.value_dim; i += kThreads) {
      float total = 0;
      NIBBLE_UNROLL
      for (int w = 0; w < kWarps; ++w) {
        total = MultiplyAdd(factors[w], shared[w].weighted[i], total);
      }
      out[i] = total / sum;
    }
  }
};

// --- The likeliest token

struct Candidate {
  float logit;
  int32_t token;

  // The first of the largest; NaN is never larger.
  NIBBLE_HD static Candidate Better(Candidate a, Candidate b) {
    if (a.logit > b.logit) return a;
    if (b.logit > a.logit) return b;
    return a.token < b.token ? a : b;
  }
};

// A block's row: first every warp finds its own, then, behind a barrier, one thread the best.
struct LikeliestRow {
  const float* logits;
  int64_t count;

  template <class Warp>
  NIBBLE_HD void Find(const Warp& warp, int index, Candidate* shared) const {
    typename Warp::template Lanes<Candidate> best;
    warp.Each([&](int lane) {
      Candidate mine = {kMinusInfinity, INT32_MAX};
      for (int64_t i = kLanes * index + lane; i < count; i += kThreads) {
        if (logits[i] > mine.logit || mine.token == INT32_MAX) {
          // A NaN that comes first gives way to any number.
          mine = {logits[i] == logits[i] ? logits[i] : kMinusInfinity, static_cast<int32_t>(i)};
        }
      }
      best[lane] = mine;
    });
    const Candidate found = Best(warp, best);
    warp.Each([&](int lane) {
      if (lane == 0) shared[index] = found;
    });
  }

  NIBBLE_HD static int32_t Choose(const Candidate* shared) {
    Candidate best = shared[0];
    for (int w = 1; w < kWarps; ++w) best = Candidate::Better(best, shared[w]);
    return best.token;
  }

 private:
  // By their parts, since lanes exchange registers.
  template <class Warp>
  NIBBLE_HD static Candidate Best(const Warp& warp, typename Warp::template Lanes<Candidate> best) {
    for (int step = 16; step > 0; step /= 2) {
      typename Warp::template Lanes<float> logits;
      typename Warp::template Lanes<int32_t> tokens;
      warp.Each([&](int lane) {
        logits[lane] = best[lane].logit;
        tokens[lane] = best[lane].token;
      });
      logits = Exchange(warp, logits, step);
      tokens = Exchange(warp, tokens, step);
      warp.Each([&](int lane) {
        best[lane] = Candidate::Better(best[lane], {logits[lane], tokens[lane]});
      });
    }
    return best[0];
  }
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_DECODER_H_
