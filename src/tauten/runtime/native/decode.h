// A Llama-like decoder: what Python hands over, and what the kernels of one layer see.
#pragma once
#include <cstdint>

namespace tauten {

// Layouts below are mirrored by runtime/decoder_layout.py.

// A packed weight with its bias, and whether its products round the tokens to int8.
struct Matrix {
  const uint8_t* codes;  // as in problem.h, like the others
  const void* scale;
  const void* zero;
  const uint8_t* book;
  const float* entries;
  const float* bias;
  int64_t out, in, group_chunks;
  int32_t zero_kind, half, bits, shared_entries, int8;
};

struct Layer {
  Matrix query, key, value, output, gate, up, down;
  const float* attention_norm;  // (hidden,)
  const float* mlp_norm;        // (hidden,)
  const float* query_norm;      // (head_size,) or null
  const float* key_norm;        // (head_size,) or null
};

struct Model {
  const Layer* layers;
  Matrix embedding, head;
  const float* norm;  // (hidden,)
  int64_t layer_count, heads, key_heads, head_size;
  float epsilon;
};

// Room for `capacity` positions, a multiple of 32. Keys stand in blocks of 16 positions, so that a
// vector holds one number of 16 keys; values are rows, padded with zeros to `value_size`.
struct Cache {
  float* keys;          // (layers, key_heads, capacity / 16, head_size, 16)
  float* values;        // (layers, key_heads, capacity, value_size)
  const float* cosine;  // (capacity, head_size / 2)
  const float* sine;    // the same
  int64_t capacity;
};

constexpr int64_t kPairPositions = 32;  // two blocks of keys, or two vectors of a value

// Static: the linker must never merge the copies of units compiled for other instruction sets.
static inline int64_t value_size(int64_t head_size) {
  return (head_size + kPairPositions - 1) / kPairPositions * kPairPositions;
}

// x += added, then y = x / rms(x) * weight, for each token.
struct Norm {
  float* x;            // (tokens, size)
  const float* added;  // (tokens, size) or null
  const float* weight;
  float* y;  // (tokens, size)
  int64_t size;
  float epsilon;
};

// x = silu(x) * up.
struct Gate {
  float* x;         // (tokens, size)
  const float* up;  // (tokens, size)
  int64_t size;
};

// One layer's attention for some tokens, of which the first is at `position`.
struct Attention {
  float* query;        // (tokens, heads, head_size); the result replaces it
  float* key;          // (tokens, key_heads, head_size)
  const float* value;  // the same
  const float* query_norm;
  const float* key_norm;
  Cache cache;  // from this layer's keys and values on
  int64_t tokens, heads, key_heads, head_size, position;
  int64_t tiles;  // of queries, for each of the key heads
  float epsilon;
};

}  // namespace tauten
