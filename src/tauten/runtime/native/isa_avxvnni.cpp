#include "problem.h"

#if defined(__AVXVNNI__)
#include "simd_avx2.h"
// The order matters: what follows is compiled in terms of `Simd`.
#include "isa_table.h"

namespace tauten {
extern const Kernels* const kAvxVnni = &kKernels;
}
#elif defined(__x86_64__)
namespace tauten {
extern const Kernels* const kAvxVnni = nullptr;  // the compiler doesn't know AVX-VNNI
}
#endif
