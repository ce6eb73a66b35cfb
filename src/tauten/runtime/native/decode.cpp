// A Llama-like decoder in one call: tokens in, logits of the token after them out.
#include "decode.h"

#include <algorithm>
#include <initializer_list>
#include <new>

#include "multiply.h"
#include "threads.h"

namespace tauten {
namespace {

constexpr int64_t kThreadWork = 1 << 16;  // fewer multiplications aren't worth waking a thread for

// Floats of scratch that a thread needs for a tile of `rows` queries: them, scores, results.
int64_t attention_scratch(const Attention& a, int64_t rows) {
  return rows * (a.head_size + a.cache.capacity + value_size(a.head_size));
}

Problem problem_of(const Matrix& m) {
  Problem p = weight_problem(m.codes, m.scale, m.zero, m.book, m.zero_kind, m.half, m.bits, m.out,
                             m.in, m.group_chunks);
  p.entries = m.entries, p.shared_entries = m.shared_entries, p.bias = m.bias;
  return p;
}

struct Product {
  const Matrix& weight;
  float* y;
};

// A run of the decoder over a batch of tokens.
class Run {
 public:
  Run(const Model& model, const Cache& cache, const Kernels& k, int64_t tokens, int64_t position,
      int threads)
      : model_(model), cache_(cache), k_(k), tokens_(tokens), threads_(std::max(threads, 1)),
        arena_(bytes(model, cache, k, tokens, std::max(threads, 1))) {
    const Layer& first = model.layers[0];
    hidden_ = arena_.take<float>(tokens * model.embedding.in);
    normal_ = arena_.take<float>(tokens * model.embedding.in);
    added_ = arena_.take<float>(tokens * model.embedding.in);
    query_ = arena_.take<float>(tokens * first.query.out);
    key_ = arena_.take<float>(tokens * first.key.out);
    value_ = arena_.take<float>(tokens * first.key.out);
    gate_ = arena_.take<float>(tokens * first.gate.out);
    up_ = arena_.take<float>(tokens * first.gate.out);
    attention_.tokens = tokens, attention_.position = position;
    attention_.heads = model.heads, attention_.key_heads = model.key_heads;
    attention_.head_size = model.head_size, attention_.epsilon = model.epsilon;
    attention_.cache = cache, attention_.query = query_, attention_.key = key_;
    attention_.value = value_;
    const int64_t rows = tokens * (model.heads / model.key_heads);
    attention_.tiles = ceil_div(rows, k.attention_rows);
    scratch_size_ = attention_scratch(attention_, k.attention_rows);
    scratch_ = arena_.take<float>(threads_ * scratch_size_);
  }

  void embed(const int64_t* ids) {
    const Problem p = problem_of(model_.embedding);
    each_token(p.in, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) dequantize_row(p, ids[i], hidden_ + i * p.in);
    });
  }

  void layer(int64_t index) {
    const Layer& layer = model_.layers[index];
    normalize(layer.attention_norm, index > 0);
    multiply_all({{layer.query, query_}, {layer.key, key_}, {layer.value, value_}}, normal_);
    attend(layer, index);
    multiply_all({{layer.output, added_}}, query_);
    normalize(layer.mlp_norm, true);
    multiply_all({{layer.gate, gate_}, {layer.up, up_}}, normal_);
    const Gate gate{gate_, up_, layer.gate.out};
    each_token(gate.size, [&](int64_t begin, int64_t end) { k_.gate(gate, begin, end); });
    multiply_all({{layer.down, added_}}, gate_);
  }

  // Logits of the last token only: (vocabulary,).
  void head(float* logits) {
    const int64_t size = model_.embedding.in, last = (tokens_ - 1) * size;
    const Norm norm{hidden_ + last, added_ + last, model_.norm, normal_, size, model_.epsilon};
    k_.normalize(norm, 0, 1);
    tokens_ = 1;
    multiply_all({{model_.head, logits}}, normal_);
  }

 private:
  static int64_t bytes(const Model& model, const Cache& cache, const Kernels& k, int64_t tokens,
                       int threads) {
    const Layer& first = model.layers[0];
    Attention sizes{};
    sizes.cache = cache, sizes.head_size = model.head_size;
    const int64_t numbers = 3 * model.embedding.in + first.query.out + 2 * first.key.out +
                            2 * first.gate.out;
    const int64_t scratch = threads * attention_scratch(sizes, k.attention_rows);
    return 4 * (tokens * numbers + scratch) + 9 * 64;  // each array starts on a cache line
  }

  // Calls task(begin, end) for all tokens, shared out where there are many; `size` of each.
  template <class Task>
  void each_token(int64_t size, Task task) {
    const int threads = static_cast<int>(
        std::min<int64_t>(threads_, 1 + tokens_ * size / kThreadWork));
    parallel_for(tokens_, 8, threads, [&](int, int64_t begin, int64_t end) { task(begin, end); });
  }

  void normalize(const float* weight, bool add) {
    const Norm norm{hidden_, add ? added_ : nullptr, weight,
                    normal_, model_.embedding.in,    model_.epsilon};
    each_token(norm.size, [&](int64_t begin, int64_t end) { k_.normalize(norm, begin, end); });
  }

  void attend(const Layer& layer, int64_t index) {
    Attention& a = attention_;
    const int64_t positions = index * a.key_heads * cache_.capacity;
    a.cache.keys = cache_.keys + positions * a.head_size;
    a.cache.values = cache_.values + positions * value_size(a.head_size);
    a.query_norm = layer.query_norm, a.key_norm = layer.key_norm;
    each_token(layer.query.out, [&](int64_t begin, int64_t end) { k_.place(a, begin, end); });
    const int64_t work = a.tokens * (a.position + a.tokens) * layer.query.out;
    const int threads = static_cast<int>(std::min<int64_t>(threads_, 1 + work / kThreadWork));
    parallel_for(a.key_heads * a.tiles, 1, threads, [&](int worker, int64_t begin, int64_t end) {
      k_.attend(a, begin, end, scratch_ + worker * scratch_size_);
    });
  }

  // Products with the same tokens: together where they are rounded alike.
  void multiply_all(std::initializer_list<Product> products, const float* x) {
    const Matrix& first = products.begin()->weight;
    Problem problems[3];
    int count = 0;
    bool alike = true;
    for (const Product& product : products) {
      const Matrix& weight = product.weight;
      alike = alike && weight.int8 == first.int8 && weight.group_chunks == first.group_chunks;
      Problem& p = problems[count++] = problem_of(weight);
      p.x = x, p.y = product.y, p.tokens = tokens_;
    }
    if (alike) return multiply(problems, count, k_, first.int8, threads_);
    for (int i = 0; i < count; ++i)
      multiply(problems + i, 1, k_, products.begin()[i].weight.int8, threads_);
  }

  const Model& model_;
  const Cache& cache_;
  const Kernels& k_;
  int64_t tokens_;
  int threads_;
  Arena arena_;
  float *hidden_, *normal_, *added_, *query_, *key_, *value_, *gate_, *up_, *scratch_;
  int64_t scratch_size_;
  Attention attention_{};
};

}  // namespace
}  // namespace tauten

// Appends `count` tokens, the first at `position`, to the cache; `logits` (vocabulary,) are those
// of the last one. The caller has checked all shapes, the ids and that the cache has room. Returns
// 0, 1 where memory ran out, 2 for an unknown `isa`.
TAUTEN_EXPORT int tauten_decode(const tauten::Model* model, const tauten::Cache* cache,
                                const int64_t* ids, int64_t count, int64_t position,
                                float* logits, int isa, int threads) {
  using namespace tauten;
  const Kernels* k = kernels(isa);
  if (!k) return 2;
  try {
    for (int64_t begin = 0; begin < count; begin += kBatchTokens) {
      const int64_t tokens = std::min(kBatchTokens, count - begin);
      Run run(*model, *cache, *k, tokens, position + begin, threads);
      run.embed(ids + begin);
      for (int64_t i = 0; i < model->layer_count; ++i) run.layer(i);
      if (begin + tokens == count) run.head(logits);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
