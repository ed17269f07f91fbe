// The operators of the domain ai.deploykit: DynamicQuantizeGRU, DynamicQuantizeLSTM and DynamicQuantizeRNN.
//
// They are ONNX's GRU, LSTM and RNN (layout 0, default activations) with int8 weights. Inputs: X [time, batch, input],
// W int8 [directions, input, gates * hidden], R int8 [directions, hidden, gates * hidden], W_scale and R_scale
// [directions, gates * hidden], then as ONNX has them, each may be missing: B, sequence_lens, initial_h, initial_c.
// Weights, scales and B have to be constants: they are packed when the session is made. Outputs Y, Y_h, Y_c.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "layer.hpp"
#include "onnxruntime_abi.hpp"
#include "tensors.hpp"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace deploykit {
namespace {

constexpr int operators_version = 1;
constexpr const char* domain_name = "ai.deploykit";

enum Input : std::size_t { in_x, in_w, in_r, in_w_scale, in_r_scale, in_bias, in_lengths, in_h, in_c };
constexpr const char* input_names[] = {"X", "W", "R", "W_scale", "R_scale", "B", "sequence_lens", "initial_h", "initial_c"};

struct Operator : ort::CustomOp {
  Kind kind;
  const char* op_name;
};

class Kernel {
 public:
  Kernel(const Api& api, const ort::KernelInfo* info, Kind kind) : api_(api), kind_(kind) {
    const std::string direction = text_attribute(api, info, "direction", "forward");
    const std::string activation = text_attribute(api, info, "activation", "Tanh");
    const bool both = direction == "bidirectional";
    if (!both && direction != "forward" && direction != "reverse") throw Wrong("direction is " + direction);
    if (activation != "Tanh" && !(activation == "Relu" && kind == Kind::rnn)) {
      throw Wrong("activation is " + activation);
    }
    directions_ = both ? 2 : 1;
    hidden_ = int_attribute(api, info, "hidden_size", 0);
    if (hidden_ < 1 || hidden_ > most_rows) throw Wrong("hidden_size is " + std::to_string(hidden_));
    const std::int64_t width = gates_of(kind) * hidden_;
    const Tensor w = constant(info, in_w, {directions_, -1, width});
    const Tensor r = constant(info, in_r, {directions_, hidden_, width});
    const Tensor w_scale = constant(info, in_w_scale, {directions_, width});
    const Tensor r_scale = constant(info, in_r_scale, {directions_, width});
    check(api.input_count(info, &inputs_));
    check(api.output_count(info, &outputs_));
    Tensor bias;
    if (inputs_ > in_bias) bias = constant(info, in_bias, {directions_, 2 * width}, true);
    input_ = w.dims.at[1];
    if (input_ < 1 || input_ > most_rows) throw Wrong("W has " + std::to_string(input_) + " rows");
    for (const Tensor* matrix : {&w, &r}) {
      const auto* values = matrix->as<std::int8_t>();
      const std::int64_t count = directions_ * matrix->dims.at[1] * width;
      if (std::memchr(values, 0x80, static_cast<std::size_t>(count))) {
        throw Wrong("a weight is -128: weights are symmetric, -127 to 127");
      }
    }
    check_finite(w_scale, in_w_scale, directions_ * width);
    check_finite(r_scale, in_r_scale, directions_ * width);
    if (bias) check_finite(bias, in_bias, directions_ * 2 * width);
    const char* forced = std::getenv("DEPLOYKIT_KERNELS_PATH");
    const Path* path = choose(forced);
    if (!path) {
      throw Wrong(std::string("DEPLOYKIT_KERNELS_PATH is ") + forced + ": this build or this CPU has no such path");
    }
    for (std::int64_t at = 0; at < directions_; ++at) {
      Spec spec;
      spec.kind = kind;
      spec.input = input_;
      spec.hidden = hidden_;
      spec.linear_before_reset = int_attribute(api, info, "linear_before_reset", 0) != 0;
      spec.relu = activation == "Relu";
      spec.reverse = at == 1 || direction == "reverse";
      packed_.push_back(path->pack(spec, {w.as<std::int8_t>() + at * input_ * width,
                                          r.as<std::int8_t>() + at * hidden_ * width, w_scale.as<float>() + at * width,
                                          r_scale.as<float>() + at * width,
                                          bias ? bias.as<float>() + at * 2 * width : nullptr}));
    }
  }

  void compute(ort::KernelContext* context) const {
    const Tensor x = input(context, in_x, {-1, -1, input_});
    if (!x) throw Wrong("X is missing");
    const std::int64_t steps = x.dims.at[0], batch = x.dims.at[1];
    const Tensor lengths = input(context, in_lengths, {batch});
    const Tensor h = input(context, in_h, {directions_, batch, hidden_});
    const Tensor c = kind_ == Kind::lstm ? input(context, in_c, {directions_, batch, hidden_}) : Tensor();
    for (std::int64_t row = 0; lengths && row < batch; ++row) {
      const std::int32_t length = lengths.as<std::int32_t>()[row];
      if (length < 0 || length > steps) {
        throw Wrong("sequence_lens holds " + std::to_string(length) + ", and there are " + std::to_string(steps) + " steps");
      }
    }
    float* y = output(context, 0, {steps, directions_, batch, hidden_});
    float* final_h = output(context, 1, {directions_, batch, hidden_});
    float* final_c = kind_ == Kind::lstm ? output(context, 2, {directions_, batch, hidden_}) : nullptr;
    if (batch == 0) return;

    std::array<std::int64_t, 16> few;
    std::vector<std::int64_t> many(batch > static_cast<std::int64_t>(few.size()) ? static_cast<std::size_t>(batch) : 0);
    std::int64_t* order = many.empty() ? few.data() : many.data();
    for (std::int64_t row = 0; row < batch; ++row) order[row] = row;
    if (lengths) {
      const auto* of = lengths.as<std::int32_t>();
      std::stable_sort(order, order + batch, [of](std::int64_t a, std::int64_t b) { return of[a] > of[b]; });
    }
    const std::int64_t together = packed_[0]->rows_at_once(steps);
    const std::int64_t groups = (batch + together - 1) / together;
    const std::int64_t tasks = groups * directions_;
    Threads threads(api_, context);
    Serial serial;
    const auto task = [&](std::int64_t index, Pool& within) {
      const std::int64_t direction = index / groups, group = index % groups;
      const std::int64_t states = direction * batch * hidden_;
      Run run{};
      run.steps = steps;
      run.batch = batch;
      run.x = x.as<float>();
      run.lengths = lengths ? lengths.as<std::int32_t>() : nullptr;
      run.initial_h = h ? h.as<float>() + states : nullptr;
      run.initial_c = c ? c.as<float>() + states : nullptr;
      run.y = y ? y + states : nullptr;
      run.y_step = directions_ * batch * hidden_;
      run.y_row = hidden_;
      run.final_h = final_h ? final_h + states : nullptr;
      run.final_c = final_c ? final_c + states : nullptr;
      packed_[static_cast<std::size_t>(direction)]->run(run, order, batch * group / groups,
                                                        batch * (group + 1) / groups, within);
    };
    if (tasks == 1) {
      task(0, threads);
    } else if (steps * batch * (input_ + hidden_) * gates_of(kind_) * hidden_ < least_shared) {
      for (std::int64_t one = 0; one < tasks; ++one) task(one, serial);
    } else {
      std::vector<std::exception_ptr> failed(static_cast<std::size_t>(tasks));
      threads.Pool::each(static_cast<std::size_t>(tasks), [&](std::size_t index) {
        try {
          task(static_cast<std::int64_t>(index), serial);
        } catch (...) {  // an exception must not leave a thread of the session's
          failed[index] = std::current_exception();
        }
      });
      for (const auto& one : failed) {
        if (one) std::rethrow_exception(one);
      }
    }
  }

 private:
  // More rows of a matrix could overflow a sum of products in 32 bits: 255 * 127 * 2^16 just fits.
  static constexpr std::int64_t most_rows = 1 << 16;
  // Multiply-accumulates below which waking other threads costs more than they save.
  static constexpr std::int64_t least_shared = 1 << 21;

  class Threads final : public Pool {
   public:
    Threads(const Api& api, const ort::KernelContext* context) : api_(api), context_(context) {}
    void each(std::size_t count, Task task, void* data) override { check(api_.parallel(context_, task, count, data)); }

   private:
    const Api& api_;
    const ort::KernelContext* context_;
  };

  static void check_finite(const Tensor& tensor, std::size_t index, std::int64_t count) {
    const auto* values = tensor.as<float>();
    if (!std::all_of(values, values + count, [](float value) { return std::isfinite(value); })) {
      throw Wrong(std::string(input_names[index]) + " holds NaN or Inf");
    }
  }

  Tensor constant(const ort::KernelInfo* info, std::size_t index, const Dims& expected,
                  bool may_be_missing = false) const {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    check(api_.constant(info, index, &is_constant, &value));
    if (!is_constant || !value) {
      std::size_t size = 0;  // of its name in the graph, with the zero at its end: 1 where the input is missing
      check(api_.input_name(info, index, nullptr, &size));
      if (may_be_missing && size <= 1) return {};
      throw Wrong(std::string(input_names[index]) + " is no constant of the model");
    }
    return read(api_, value, expected, input_names[index]);
  }

  Tensor input(const ort::KernelContext* context, std::size_t index, const Dims& expected) const {
    if (index >= inputs_) return {};
    const ort::Value* value = nullptr;
    check(api_.input(context, index, &value));
    return value ? read(api_, value, expected, input_names[index]) : Tensor();
  }

  float* output(ort::KernelContext* context, std::size_t index, const Dims& dims) const {
    if (index >= outputs_) return nullptr;
    ort::Value* value = nullptr;
    check(api_.output(context, index, dims.at.data(), dims.rank, &value));
    if (!value) return nullptr;
    void* data = nullptr;
    check(api_.data(value, &data));
    return static_cast<float*>(data);
  }

  const Api& api_;
  Kind kind_;
  std::int64_t directions_ = 1, hidden_ = 0, input_ = 0;
  std::size_t inputs_ = 0, outputs_ = 0;
  std::vector<std::unique_ptr<Direction>> packed_;
};

const Operator& self(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

// Whatever ``work`` throws, as onnxruntime wants it.
template <class Work>
ort::Status* guarded(const Api& api, const char* name, Work&& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Refused& refused) {
    return refused.status;
  } catch (const Wrong& wrong) {
    const std::string message = std::string(domain_name) + "." + name + ": " + wrong.what() + ".";
    return api.create_status(ort::invalid_argument, message.c_str());
  } catch (const std::bad_alloc&) {
    return api.create_status(ort::fail, "ai.deploykit: out of memory.");
  } catch (const std::exception& error) {
    return api.create_status(ort::fail, error.what());
  }
}

struct Held {
  const Api* api;
  const char* name;
  Kernel kernel;
};

Operator made(Kind kind, const char* name) {
  Operator op{};
  op.kind = kind;
  op.op_name = name;
  op.version = ort::api_version;
  op.name = [](const ort::CustomOp* it) { return self(it).op_name; };
  op.provider = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
  op.input_type_count = [](const ort::CustomOp* it) -> std::size_t { return self(it).kind == Kind::lstm ? 9 : 8; };
  op.input_type = [](const ort::CustomOp*, std::size_t index) {
    if (index == in_w || index == in_r) return ort::type_int8;
    return index == in_lengths ? ort::type_int32 : ort::type_float;
  };
  op.output_type_count = [](const ort::CustomOp* it) -> std::size_t { return self(it).kind == Kind::lstm ? 3 : 2; };
  op.output_type = [](const ort::CustomOp*, std::size_t) { return ort::type_float; };
  op.input_characteristic = [](const ort::CustomOp*, std::size_t index) {
    return index < in_bias ? ort::required : ort::optional;
  };
  op.output_characteristic = [](const ort::CustomOp*, std::size_t) { return ort::optional; };
  op.input_memory = [](const ort::CustomOp*, std::size_t) { return 0; };
  for (auto place : {&op.variadic_input_least, &op.variadic_input_alike, &op.variadic_output_least,
                     &op.variadic_output_alike}) {
    *place = [](const ort::CustomOp*) { return 0; };
  }
  op.create_kernel_status = [](const ort::CustomOp* it, const Api* api, const ort::KernelInfo* info,
                               void** kernel) -> ort::Status* {
    return guarded(*api, self(it).op_name, [&] {
      *kernel = new Held{api, self(it).op_name, Kernel(*api, info, self(it).kind)};
    });
  };
  op.compute_status = [](void* kernel, ort::KernelContext* context) -> ort::Status* {
    const auto& held = *static_cast<const Held*>(kernel);
    return guarded(*held.api, held.name, [&] { held.kernel.compute(context); });
  };
  op.destroy = [](void* kernel) { delete static_cast<Held*>(kernel); };
  return op;
}

}  // namespace
}  // namespace deploykit

// What onnxruntime calls when the library is registered with a session's options.
EXPORTED deploykit::ort::Status* RegisterCustomOps(deploykit::ort::SessionOptions* options,
                                                   const deploykit::ort::ApiBase* base) {
  using namespace deploykit;
  static const Operator operators[] = {made(Kind::gru, "DynamicQuantizeGRU"), made(Kind::lstm, "DynamicQuantizeLSTM"),
                                       made(Kind::rnn, "DynamicQuantizeRNN")};
  const ort::Api* api = base->get_api(ort::api_version);
  if (!api) {  // older than 1.16: only the first entries are there, enough to say so
    api = base->get_api(1);
    return api ? api->create_status(ort::fail, "the operators of ai.deploykit need onnxruntime 1.16 or newer.") : nullptr;
  }
  // One domain for the process: its operators are the same for every session, and sessions outlive their options.
  static ort::CustomOpDomain* domain = nullptr;
  static std::mutex making;
  const std::lock_guard<std::mutex> alone(making);
  if (!domain) {
    ort::CustomOpDomain* made_now = nullptr;
    if (ort::Status* failed = api->create_domain(domain_name, &made_now)) return failed;
    for (const Operator& op : operators) {
      if (ort::Status* failed = api->add_operator(made_now, &op)) return failed;
    }
    domain = made_now;
  }
  return api->add_domain(options, domain);
}

// The version of the operators that this library has: the domain's version in a model's opset imports.
EXPORTED int deploykit_kernels_version() { return deploykit::operators_version; }

// The name of the path ``index`` of this build, null behind the last; ``runs`` gets whether this CPU has it.
EXPORTED const char* deploykit_kernels_path(std::size_t index, int* runs) {
  std::size_t count;
  const deploykit::Path* all = deploykit::paths(count);
  if (index >= count) return nullptr;
  if (runs) *runs = all[index].runs_here() ? 1 : 0;
  return all[index].name;
}
