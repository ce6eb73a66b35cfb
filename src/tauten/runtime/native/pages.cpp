// Huge pages for weights: a stream over small ones waits for the processor's page tables.
#include <cstdint>

#include "multiply.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Moves memory that holds a weight into pages of 2 MiB. Only advice: where the system (Linux before
// 6.1, others) or a neighbouring mapping doesn't allow it, the pages stay as they are.
TAUTEN_EXPORT void tauten_huge_pages(const void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  for (uintptr_t page = begin / kPage * kPage; page < begin + bytes; page += kPage)
    madvise(reinterpret_cast<void*>(page), kPage, kCollapse);
#else
  static_cast<void>(memory), static_cast<void>(bytes);
#endif
}
