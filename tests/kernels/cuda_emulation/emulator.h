// Runs the threads of CUDA thread blocks as fibers of one thread of the CPU, and watches what they do to shared memory.
//
// Exact in what the kernels rely on: which lane holds which element of a matrix, that an instruction of a warp needs
// all its lanes, that an asynchronous copy is there only after its wait and, for other threads, after a barrier that
// follows it. An error, which ends the launch with a message:
//   - lanes of a warp that meet at different instructions, barriers that not all threads reach;
//   - shared memory read before anything was written there, while a copy is on its way to it, or, between two barriers
//     (of all threads, or of the warp that both belong to), by one thread and written by another; so a barrier or a
//     wait that is missing shows whatever the order of threads;
//   - addresses that are not aligned or not in shared memory; 8 rows of a matrix that meet in a bank;
//   - a thread that ends while its copies are on their way.
// Shared memory starts as NaN, for the accesses through plain pointers, which are not watched. Between barriers the
// warps of a thread block take turns in an order that changes from barrier to barrier.
#ifndef TFGEN_TESTS_CUDA_EMULATION_EMULATOR_H_
#define TFGEN_TESTS_CUDA_EMULATION_EMULATOR_H_

#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned count) : x(count) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;
constexpr uint32_t kSharedBase = 1024;  // not 0, so that an address is not mistaken for an offset
constexpr size_t kMaxShared = 227 * 1024;

struct Copy {
  uint32_t target;
  const void* source;  // null: zeros
  int bytes;
};

enum class State { kReady, kInWarp, kAtBarrier, kFinished };

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool started = false;
  State state = State::kReady;
  std::vector<std::vector<Copy>> groups;  // committed, not complete
  std::vector<Copy> open;                 // since the last commit
};

struct Warp {
  const char* instruction = nullptr;  // that its lanes are meeting at
  void* lanes[kWarp] = {};            // their operands
  int arrived = 0;
  int epoch = 1;  // its own barriers (__syncwarp) so far
};

// Four bytes of shared memory.
struct Word {
  int writer = -1;      // thread; -1: nobody yet
  int write_epoch = 0, write_warp_epoch = 0;  // barriers before the write, of all threads and of the writer's warp
  int reader = -1;      // since then; kMany: more than one
  int read_epoch = -1;
  int reading_warp = -1, read_warp_epoch = -1;  // of the readers; kMany: more than one warp
  bool in_flight = false;  // a copy is on its way
};
constexpr int kMany = -2;

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<Warp> warps;
  std::vector<int> turns;  // warps, in the order in which they run
  std::vector<Word> words;
  alignas(1024) unsigned char shared[kMaxShared];
  size_t shared_bytes = 0;
  int threads = 0, current = 0, epoch = 1;
  uint32_t random = 1;
  jmp_buf host;
  ucontext_t host_context;
  std::function<void()> body;
  std::string error;
};
inline Machine machine;

[[noreturn]] inline void fail(const std::string& message) {
  machine.error = "thread block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(machine.current) + ": " +
                  message;
  _longjmp(machine.host, 1);  // leaves the fibers where they are
}

inline uint32_t next_random() {
  machine.random = machine.random * 1664525u + 1013904223u;
  return machine.random >> 8;
}

inline void fiber_main() {
  machine.body();
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = State::kFinished;
  void leave();
  leave();
}

__attribute__((noinline)) inline void switch_to(int next) {
  Fiber& to = machine.fibers[next];
  if (_setjmp(machine.fibers[machine.current].place) != 0) return;
  machine.current = next;
  threadIdx.x = static_cast<unsigned>(next);
  if (to.started) _longjmp(to.place, 1);
  to.started = true;
  setcontext(&to.context);
}

inline int ready_lane(int warp, int after) {
  for (int i = 1; i <= kWarp; ++i) {
    const int thread = warp * kWarp + (after + i) % kWarp;
    if (thread < machine.threads && machine.fibers[thread].state == State::kReady) return thread;
  }
  return -1;
}

// Lets another thread run: of this warp as long as one can, then of the next warp.
inline void leave() {
  for (int round = 0; round < 2; ++round) {
    int next = ready_lane(machine.current / kWarp, machine.current % kWarp);
    for (size_t i = 0; next < 0 && i < machine.turns.size(); ++i) next = ready_lane(machine.turns[i], kWarp - 1);
    if (next >= 0) {
      if (next != machine.current) switch_to(next);
      return;
    }
    const auto count = [](State state) {
      return std::count_if(machine.fibers.begin(), machine.fibers.begin() + machine.threads,
                           [state](const Fiber& fiber) { return fiber.state == state; });
    };
    if (count(State::kFinished) == machine.threads) _longjmp(machine.host, 2);
    for (const Warp& warp : machine.warps) {
      if (warp.arrived) fail(std::string("some lanes of a warp do not reach ") + warp.instruction);
    }
    if (count(State::kAtBarrier) != machine.threads) fail("a barrier that some threads never reach");
    ++machine.epoch;
    for (size_t i = machine.turns.size(); i > 1; --i) std::swap(machine.turns[i - 1], machine.turns[next_random() % i]);
    for (int i = 0; i < machine.threads; ++i) machine.fibers[i].state = State::kReady;
    // Once more: somebody can run now.
  }
}

inline void barrier() {
  machine.fibers[machine.current].state = State::kAtBarrier;
  leave();
}

// An instruction of a whole warp: the last lane to arrive calls `function(operands of all lanes)`.
template <typename Operands, typename Function>
void together(const char* instruction, Operands& mine, Function function) {
  Warp& warp = machine.warps[machine.current / kWarp];
  const int lane = machine.current % kWarp;
  if (warp.arrived && warp.instruction != instruction) {
    fail(std::string("one lane is at ") + instruction + ", another at " + warp.instruction);
  }
  warp.instruction = instruction;
  warp.lanes[lane] = &mine;
  if (++warp.arrived < kWarp) {
    machine.fibers[machine.current].state = State::kInWarp;
    leave();
    return;
  }
  Operands* lanes[kWarp];
  for (int i = 0; i < kWarp; ++i) lanes[i] = static_cast<Operands*>(warp.lanes[i]);
  function(lanes);
  warp.arrived = 0;
  for (int i = 0; i < kWarp; ++i) machine.fibers[machine.current / kWarp * kWarp + i].state = State::kReady;
}

// Shared memory ---------------------------------------------------------------------------------------------------

inline size_t offset_of(uint32_t address, int bytes) {
  const size_t offset = static_cast<size_t>(address) - kSharedBase;
  if (address < kSharedBase || offset + bytes > machine.shared_bytes) fail("an address outside shared memory");
  if (address % bytes) fail("an address in shared memory that is not a multiple of its " + std::to_string(bytes));
  return offset;
}

constexpr int kWholeWarp = -3;  // a reader of which no single thread may be told

inline int current_warp() { return machine.current / kWarp; }

// Whether this warp has met since `warp` did something at that epoch of its own, and is that warp.
inline bool after_in_warp(int warp, int warp_epoch) {
  return warp == current_warp() && machine.warps[warp].epoch > warp_epoch;
}

inline bool after_write(const Word& word) {
  return word.write_epoch != machine.epoch || after_in_warp(word.writer / kWarp, word.write_warp_epoch);
}

inline bool after_reads(const Word& word) {
  return word.read_epoch != machine.epoch || after_in_warp(word.reading_warp, word.read_warp_epoch);
}

inline void note_write(Word& word) {
  word.writer = machine.current;
  word.write_epoch = machine.epoch;
  word.write_warp_epoch = machine.warps[current_warp()].epoch;
}

inline void watch_read(size_t offset, int bytes, int reader) {
  for (size_t i = offset / 4; i < (offset + bytes) / 4; ++i) {
    Word& word = machine.words[i];
    if (word.in_flight) fail("reads shared memory that a copy is on its way to");
    if (word.writer < 0) fail("reads shared memory that nobody has written");
    if (word.writer != reader && !after_write(word)) {
      fail("reads what another thread has written since the last barrier");
    }
    const bool more = word.read_epoch == machine.epoch;
    word.reader = more && word.reader != reader ? kMany : reader;
    word.reading_warp = more && word.reading_warp != current_warp() ? kMany : current_warp();
    word.read_epoch = machine.epoch;
    word.read_warp_epoch = machine.warps[current_warp()].epoch;
  }
}

inline void watch_write(size_t offset, int bytes) {
  for (size_t i = offset / 4; i < (offset + bytes) / 4; ++i) {
    Word& word = machine.words[i];
    if (word.in_flight) fail("writes where a copy is on its way to");
    if (word.writer >= 0 && word.writer != machine.current && !after_write(word)) {
      fail("writes what another thread has written since the last barrier");
    }
    if (word.reader != machine.current && !after_reads(word)) {
      fail("writes what another thread has read since the last barrier");
    }
    note_write(word);
  }
}

inline void start_copy(uint32_t target, const void* source, int bytes, bool copied) {
  const size_t offset = offset_of(target, bytes);
  if (reinterpret_cast<uintptr_t>(source) % bytes) fail("a copy from an address that is not aligned");
  watch_write(offset, bytes);
  for (size_t i = offset / 4; i < (offset + bytes) / 4; ++i) machine.words[i].in_flight = true;
  memset(machine.shared + offset, 0xff, bytes);
  machine.fibers[machine.current].open.push_back({target, copied ? source : nullptr, bytes});
}

inline void commit() {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

inline void wait(int pending) {
  std::vector<std::vector<Copy>>& groups = machine.fibers[machine.current].groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& copy : groups.front()) {
      const size_t offset = copy.target - kSharedBase;
      if (copy.source) {
        memcpy(machine.shared + offset, copy.source, copy.bytes);
      } else {
        memset(machine.shared + offset, 0, copy.bytes);
      }
      for (size_t i = offset / 4; i < (offset + copy.bytes) / 4; ++i) {
        machine.words[i].in_flight = false;
        note_write(machine.words[i]);
      }
    }
    groups.erase(groups.begin());
  }
}

// Launches --------------------------------------------------------------------------------------------------------

// Runs the thread blocks of a launch one after the other. Returns whether all went well; machine.error says what did
// not.
inline bool run(unsigned blocks, unsigned threads, size_t shared_bytes, std::function<void()> body) {
  machine.error.clear();
  machine.body = std::move(body);
  machine.threads = static_cast<int>(threads);
  machine.shared_bytes = shared_bytes;
  machine.random = 1;
  blockDim = dim3(threads);
  gridDim = dim3(blocks);
  if (machine.fibers.size() < threads) machine.fibers.resize(threads);
  while (machine.stacks.size() < threads) machine.stacks.emplace_back(new char[kStack]);
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = {block, 0, 0};
    machine.warps.assign((threads + kWarp - 1) / kWarp, Warp());
    machine.turns.clear();
    for (size_t i = 0; i < machine.warps.size(); ++i) machine.turns.push_back(static_cast<int>(i));
    machine.words.assign((shared_bytes + 3) / 4, Word());
    machine.epoch = 1;
    memset(machine.shared, 0xff, shared_bytes);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = machine.fibers[i];
      fiber.started = false;
      fiber.state = State::kReady;
      fiber.groups.clear();
      fiber.open.clear();
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = machine.stacks[i].get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, fiber_main, 0);
    }
    const int how = _setjmp(machine.host);
    if (how == 1) return false;
    if (how == 0) {
      // The host's own place in `fibers` would be overwritten by switch_to: enter the first fiber directly.
      machine.current = machine.turns[next_random() % machine.turns.size()] * kWarp;
      threadIdx = {static_cast<unsigned>(machine.current), 0, 0};
      machine.fibers[machine.current].started = true;
      setcontext(&machine.fibers[machine.current].context);
    }
    for (unsigned i = 0; i < threads; ++i) {
      const Fiber& fiber = machine.fibers[i];
      bool pending = !fiber.open.empty();
      for (const std::vector<Copy>& group : fiber.groups) pending = pending || !group.empty();
      if (pending) {
        machine.error = "a thread ends while its copies are on their way";
        return false;
      }
    }
  }
  return true;
}

}  // namespace emulator
#endif  // TFGEN_TESTS_CUDA_EMULATION_EMULATOR_H_
