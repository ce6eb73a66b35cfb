#include "simd_portable.h"
// The order matters: what follows is compiled in terms of `Simd`.
#include "isa_table.h"

namespace tauten {
extern const Kernels kPortable = kKernels;
}
