// One direction of an int8 GRU, LSTM or RNN, packed for one instruction set; nothing here knows of onnxruntime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace deploykit {

enum class Kind { gru, lstm, rnn };

constexpr int gates_of(Kind kind) { return kind == Kind::gru ? 3 : kind == Kind::lstm ? 4 : 1; }

// Sizes and variant of one direction. Gates lie in ONNX's order: GRU z, r, h; LSTM i, o, f, c.
struct Spec {
  Kind kind = Kind::gru;
  std::int64_t input = 0;
  std::int64_t hidden = 0;
  bool linear_before_reset = true;  // GRU
  bool relu = false;                // RNN
  bool reverse = false;
};

// Weights of one direction: w [input, gates * hidden], r [hidden, gates * hidden], scales [gates * hidden],
// bias [2 * gates * hidden] (the input's, then the state's) or null. A float weight is value * scale.
struct Weights {
  const std::int8_t* w;
  const std::int8_t* r;
  const float* w_scale;
  const float* r_scale;
  const float* bias;
};

// One direction of one inference. Pointers may be unaligned; those marked * may be null.
struct Run {
  std::int64_t steps;
  std::int64_t batch;
  const float* x;                // [steps, batch, input]
  const std::int32_t* lengths;   // * [batch], each 0 to steps
  const float* initial_h;        // * [batch, hidden]
  const float* initial_c;        // * [batch, hidden]
  float* y;                      // * y[step * y_step + row * y_row + unit]
  std::int64_t y_step;
  std::int64_t y_row;
  float* final_h;                // * [batch, hidden]
  float* final_c;                // * [batch, hidden]
};

// Runs task(0) to task(count - 1), at once or one after another.
class Pool {
 public:
  virtual ~Pool() = default;
  using Task = void (*)(void* data, std::size_t index);
  virtual void each(std::size_t count, Task task, void* data) = 0;

  template <class F>
  void each(std::size_t count, F&& task) {
    each(count, [](void* data, std::size_t index) { (*static_cast<std::remove_reference_t<F>*>(data))(index); },
         static_cast<void*>(&task));
  }
};

class Serial final : public Pool {
 public:
  using Pool::each;
  void each(std::size_t count, Task task, void* data) override {
    for (std::size_t index = 0; index < count; ++index) task(data, index);
  }
};

// Packed weights, never changed after they were made: any number of threads may run them at once.
class Direction {
 public:
  virtual ~Direction() = default;

  // The rows order[begin] to order[end - 1] of a run, at most rows_at_once(run.steps) of them. ``order`` sorts the rows
  // by length, the longest first. ``pool`` shares out the columns of a product that is large enough.
  virtual void run(const Run& run, const std::int64_t* order, std::int64_t begin, std::int64_t end,
                   Pool& pool) const = 0;
  virtual std::int64_t rows_at_once(std::int64_t steps) const = 0;
};

// How one kind of CPU does it.
struct Path {
  const char* name;
  bool (*runs_here)();
  std::unique_ptr<Direction> (*pack)(const Spec&, const Weights&);
};

// All paths of this build, the fastest first; the last one runs anywhere. ``count`` gets their number.
const Path* paths(std::size_t& count);

// The path by that name, or for null or an empty name the fastest that runs here; null where there is none.
const Path* choose(const char* name);

constexpr std::size_t alignment = 64;

// Throws std::bad_alloc.
void* allocate(std::size_t bytes, std::size_t zeroed);

// Memory aligned to a cache line. Its first ``zeroed`` elements are zero, all unless told else: what is padding must
// not hold what a NaN could come from.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) : Buffer(size, size) {}
  Buffer(std::size_t size, std::size_t zeroed)
      : data_(static_cast<T*>(allocate(size * sizeof(T), zeroed * sizeof(T)))), size_(size) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t index) { return data_.get()[index]; }
  const T& operator[](std::size_t index) const { return data_.get()[index]; }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t(alignment)); }
  };
  std::unique_ptr<T[], Free> data_;
  std::size_t size_ = 0;
};

}  // namespace deploykit
