#include "threads.h"

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace tauten {
namespace {

// libgomp's entry point, from the copy that torch has loaded: its threads are then ours as well.
using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<GompParallel> gomp_parallel{nullptr};

struct Share {
  int64_t items, grain;
  Task task;
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<int> workers{0};

  static void run(void* self) {
    Share& share = *static_cast<Share*>(self);
    const int worker = share.workers.fetch_add(1, std::memory_order_relaxed);
    for (;;) {
      const int64_t begin = share.next.fetch_add(share.grain, std::memory_order_relaxed);
      if (begin >= share.items) return;
      const int64_t end = begin + share.grain;
      share.task(share.context, worker, begin, end < share.items ? end : share.items);
    }
  }
};

}  // namespace

void parallel_for(int64_t items, int64_t grain, int threads, Task task, void* context) {
  if (items <= 0) return;
  if (threads <= 1 || items <= grain) return task(context, 0, 0, items);
  Share share{items, grain, task, context};
  if (const GompParallel parallel = gomp_parallel.load(std::memory_order_relaxed))
    return parallel(Share::run, &share, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> helpers;
  helpers.reserve(threads);
  try {
    for (int i = 1; i < threads; ++i) helpers.emplace_back(Share::run, &share);
  } catch (const std::system_error&) {  // the system has no more threads: these do it all
  }
  Share::run(&share);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace tauten

extern "C" __attribute__((visibility("default"))) void tauten_share_pool(void* parallel) {
  tauten::gomp_parallel = reinterpret_cast<tauten::GompParallel>(parallel);
}
