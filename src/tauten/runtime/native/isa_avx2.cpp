#if defined(__x86_64__)
#include "simd_avx2.h"
// The order matters: what follows is compiled in terms of `Simd`.
#include "isa_table.h"

namespace tauten {
extern const Kernels kAvx2 = kKernels;
}
#endif
