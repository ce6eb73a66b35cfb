// What the kernels compute, and the table of functions that each instruction set fills in.
#pragma once
#include <cstdint>

namespace tauten {

constexpr int64_t kBlockRows = 16;     // output rows that are interleaved
constexpr int64_t kChunkColumns = 32;  // columns unpacked at a time
constexpr int64_t kBookEntries = 16;   // of a codebook, repeated where it has fewer
constexpr int64_t kQuads = 8;          // runs of 4 columns in a chunk
constexpr int64_t kPairBlocks = 2;     // blocks that `float_blocked` takes at a time
constexpr int64_t kSlabChunks = 32;    // 1024 columns of a pair in float32 fit in a core's L2

enum class Zero : int32_t { kNone, kInteger, kFloat };

// Where the tokens of a convolution lie in an image of int8: column i of token t is
// image[starts[t] + offsets[i]]. `kSeenBeyond` bytes after the image's last may be read.
constexpr int64_t kSeenBeyond = 15;
struct Seen {
  const int8_t* image;
  const int64_t* starts;
  const int64_t* offsets;
};

// y = x w^T + bias. Rows are padded to blocks of 16 and columns to chunks of 32; a group is a
// whole number of chunks, the last one may have fewer.
struct Problem {
  // The weight in the interleaved layout (see formats/interleaved.py).
  const uint8_t* codes;  // (blocks, chunks, bits, 16, 4)
  const void* scale;     // (blocks, groups, 16) float16 if `half`, else float32
  const void* zero;      // the same shape: uint8 (kInteger), as scale (kFloat), or null
  const uint8_t* book;   // (blocks, 4, 4, 16) int8 or null: see `Booked` in int8_kernels.h
  const float* entries;  // (16,) of all rows if `shared_entries`, else (blocks, 16 rows, 16); or null
  bool shared_entries;
  Zero zero_kind;
  bool half;
  int bits;
  int64_t out, in, blocks, chunks, groups, group_chunks;

  // The tokens.
  const float* x;     // (tokens, in), or null with `seen`
  const Seen* seen;   // int8 by `fixed_step`: tokens that are rounded already; else null
  const float* fixed_step;  // int8: of all tokens; null where each is rounded by its own largest
  const float* bias;  // (out,) or null
  float* y;           // (tokens, out)
  int64_t tokens;
  int64_t tiles;      // that the tokens are cut into

  // Scratch, filled by `quantize` (int8) or `pad` (float).
  bool tiled;       // for `int8_blocked`: `rounded` by tiles, (quads, tokens, 4) each
  int8_t* rounded;  // (tokens, chunks * 32)
  float* padded;    // (tokens, chunks * 32)
  float* step;      // (groups, tokens), x = rounded * step
  int32_t* sum;     // (groups, tokens) of rounded
  float* total;     // (groups, tokens) of x
};

// First token of a tile; all tiles have the same number of tokens, give or take one.
inline int64_t tile_start(const Problem& p, int64_t tile) { return tile * p.tokens / p.tiles; }

// Chunks before a group.
inline int64_t chunks_before(const Problem& p, int64_t group) {
  return group < p.groups ? group * p.group_chunks : p.chunks;
}

struct SparseProblem;  // see sparse.h
struct Attention;      // see decode.h
struct Norm;
struct Gate;
struct Columns;  // see solve.h
struct Cells;

// Ranges are of tiles for `quantize` and `pad`, of blocks for the products. `direct` unpacks into
// registers, for few tokens; `blocked` unpacks a block, or a pair of them, into scratch first.
struct Kernels {
  int64_t int8_tile_tokens;     // at most so many in a tile
  int64_t float_tile_tokens;
  int64_t float_direct_tokens;  // up to here `float_direct` is the faster one
  bool (*round)(const float* x, int64_t count, float step, int8_t* codes);  // are all finite?
  void (*quantize)(const Problem&, int64_t begin, int64_t end);
  void (*pad)(const Problem&, int64_t begin, int64_t end);
  void (*int8_direct)(const Problem&, int64_t begin, int64_t end);
  void (*int8_blocked)(const Problem&, int64_t begin, int64_t end, void* scratch);
  void (*float_direct)(const Problem&, int64_t begin, int64_t end);
  void (*float_blocked)(const Problem&, int64_t begin, int64_t end, void* scratch);

  // Of pruned weights, like the float ones.
  void (*sparse_direct)(const SparseProblem&, int64_t begin, int64_t end, float* scratch);
  void (*sparse_blocked)(const SparseProblem&, int64_t begin, int64_t end, float* scratch);

  // Of the decoder; ranges are of tokens, for `attend` of tiles of queries.
  int64_t attention_rows;  // at most so many queries in a tile
  void (*normalize)(const Norm&, int64_t begin, int64_t end);
  void (*place)(const Attention&, int64_t begin, int64_t end);
  void (*attend)(const Attention&, int64_t begin, int64_t end, float* scratch);
  void (*gate)(const Gate&, int64_t begin, int64_t end);

  // Of solvers; ranges are of rows.
  void (*decide_columns)(const Columns&, int64_t begin, int64_t end);
  void (*cell_errors)(const Cells&, int64_t begin, int64_t end);
  void (*cell_sums)(const Cells&, int64_t begin, int64_t end);
};

// Vector code keeps small arrays in registers only where the loops over them are unrolled.
#define TAUTEN_UNROLL _Pragma("GCC unroll 16")
#define TAUTEN_INLINE inline __attribute__((always_inline))

// Scratch of one thread in a `blocked` kernel: scale and shift of a block's groups and its codes,
// one byte each; or a slab of a pair's weights in float32 and its (tokens, 2, 16) sums.
inline int64_t slab_floats(const Problem& p) {
  return kPairBlocks * kBlockRows * (kSlabChunks * kChunkColumns + p.tokens);
}
inline int64_t blocked_scratch_bytes(const Problem& p, bool int8) {
  if (!int8) return 4 * slab_floats(p);
  return p.groups * 2 * kBlockRows * 4 + p.chunks * kBlockRows * kChunkColumns;
}

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels* const kAvxVnni;  // null where the compiler doesn't know it
extern const Kernels kAvx512;
#endif

}  // namespace tauten
