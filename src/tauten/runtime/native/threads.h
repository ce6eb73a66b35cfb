// Work sharing on the thread pool of the process.
#pragma once
#include <cstdint>

namespace tauten {

using Task = void (*)(void* context, int worker, int64_t begin, int64_t end);

// Calls the task until [0, items) is covered, in pieces of `grain`, on up to `threads` threads;
// `worker` numbers them from 0. Pieces are taken one by one, so that a slow core does less.
void parallel_for(int64_t items, int64_t grain, int threads, Task task, void* context);

template <class Function>
void parallel_for(int64_t items, int64_t grain, int threads, Function function) {
  const Task task = [](void* context, int worker, int64_t begin, int64_t end) {
    (*static_cast<Function*>(context))(worker, begin, end);
  };
  parallel_for(items, grain, threads, task, &function);
}

}  // namespace tauten
