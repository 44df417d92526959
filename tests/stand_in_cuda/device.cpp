// A CUDA device for a build of PyTorch that has none: its memory is the computer's, its kernels are the CPU's.
//
// PyTorch takes its tensors for CUDA tensors, and so refuses what mixes devices. Beyond that, what a real device does
// behind the host's back is done here in the worst order that its streams allow:
//  - A copy on a stream of its own is made when something waits for it, and no sooner; until then its target holds
//    garbage. It reads and writes by address, and freed memory is garbage at once and soon given to the next tensor.
//  - A copy that began before the default stream was done with its tensors is an error.
// Not played: kernels on other streams than the default one, and several devices.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/TensorOperators.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <vector>

namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

const c10::Device DEVICE(c10::kCUDA, 0);
constexpr int GARBAGE = 0x7f;  // in every byte: NaN in half precision, 3.4e38 in single
constexpr size_t ALIGNMENT = 512;

// Python's own lock is given up before `everything` is taken, because whoever holds `everything` may free a tensor that
// Python knows, which takes Python's. Memory is freed while Python's lock is held, so it has a lock inside of which
// nothing else is taken.
std::recursive_mutex everything;
std::recursive_mutex memory_maps;
using Lock = std::lock_guard<std::recursive_mutex>;

// ------------------------------------------------------------ memory

int64_t in_use = 0, most = 0, limit = INT64_MAX;

size_t rounded(size_t bytes) { return std::max(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT); }

// What was freed last is given away first, as CUDA's caching allocator does.
struct DeviceMemory final : c10::Allocator {
  static std::map<const void*, size_t>& sizes() { static std::map<const void*, size_t> all; return all; }
  static std::map<size_t, std::vector<void*>>& unused() { static std::map<size_t, std::vector<void*>> all; return all; }

  c10::DataPtr allocate(size_t bytes) override {
    Lock lock(memory_maps);
    size_t size = rounded(bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, in_use + static_cast<int64_t>(size) <= limit,
                     "CUDA out of memory. Tried to allocate ", size, " bytes beside ", in_use, " of ", limit);
    auto& here = unused()[size];
    void* memory = here.empty() ? std::aligned_alloc(ALIGNMENT, size) : here.back();
    if (!here.empty()) here.pop_back();
    std::memset(memory, GARBAGE, size);
    sizes()[memory] = size;
    in_use += size;
    most = std::max(most, in_use);
    return {memory, memory, &release, DEVICE};
  }

  static void release(void* memory) {
    Lock lock(memory_maps);
    size_t size = sizes()[memory];
    std::memset(memory, GARBAGE, size);
    in_use -= size;
    sizes().erase(memory);
    unused()[size].push_back(memory);
  }

  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

DeviceMemory device_memory;

struct PinnedMemory final : c10::Allocator {
  static std::map<const char*, size_t>& sizes() { static std::map<const char*, size_t> all; return all; }

  c10::DataPtr allocate(size_t bytes) override {
    Lock lock(memory_maps);
    void* memory = std::aligned_alloc(ALIGNMENT, rounded(bytes));
    sizes()[static_cast<char*>(memory)] = rounded(bytes);
    return {memory, memory, &release, c10::Device(c10::kCPU)};
  }

  static void release(void* memory) {
    Lock lock(memory_maps);
    sizes().erase(static_cast<char*>(memory));
    std::free(memory);
  }

  static bool holds(const void* place) {
    Lock lock(memory_maps);
    auto next = sizes().upper_bound(static_cast<const char*>(place));
    if (next == sizes().begin()) return false;
    auto [begin, size] = *std::prev(next);
    return static_cast<const char*>(place) < begin + size;
  }

  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

PinnedMemory pinned_memory;

// ------------------------------------------------------------ random numbers: the CPU's, under the device's name

struct Numbers final : c10::GeneratorImpl {
  at::Generator cpu = at::detail::createCPUGenerator();

  Numbers() : c10::GeneratorImpl(DEVICE, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { cpu.set_offset(offset); }
  uint64_t get_offset() const override { return cpu.get_offset(); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }

  GeneratorImpl* clone_impl() const override {
    auto* copy = new Numbers();
    copy->cpu = cpu.clone();
    return copy;
  }
};

// ------------------------------------------------------------ what PyTorch asks of a device

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void* place) const override { return PinnedMemory::holds(place); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Numbers>(); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));

// ------------------------------------------------------------ the same memory, seen by the CPU

Tensor on_cpu(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  auto* kept = new c10::Storage(tensor.storage());
  auto forget = [](void* storage) { delete static_cast<c10::Storage*>(storage); };
  c10::DataPtr memory(kept->mutable_data(), kept, forget, c10::Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), kept->nbytes(), std::move(memory), c10::GetCPUAllocator(), true);
  auto key = c10::DispatchKeySet(c10::DispatchKey::CPU);
  auto seen = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), key, tensor.dtype());
  auto* inside = seen.unsafeGetTensorImpl();
  inside->set_sizes_and_strides(tensor.sym_sizes(), tensor.sym_strides(), tensor.sym_storage_offset());
  inside->_set_conj(tensor.is_conj());
  inside->_set_neg(tensor.is_neg());
  return seen;
}

Tensor empty_there(IntArrayRef shape, IntArrayRef strides, at::ScalarType dtype) {
  auto key = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  return at::detail::empty_strided_generic(shape, strides, &device_memory, key, dtype);
}

Tensor moved_there(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cpu()) return tensor;
  auto there = empty_there(tensor.sizes(), tensor.strides(), tensor.scalar_type());
  on_cpu(there).copy_(tensor);
  return there;
}

// ------------------------------------------------------------ streams

struct Copy {
  int64_t number;
  Tensor to, from;  // made of addresses: they keep no memory alive
};

struct Stream {
  int64_t begun = 0;
  int64_t default_seen = 0;  // it begins nothing before the default stream got so far
  std::deque<Copy> waiting;
};

constexpr int64_t DEFAULT = 0;
thread_local int64_t current = DEFAULT;
std::map<int64_t, Stream> streams;
int64_t done_by_default = 0;                // kernels and copies
std::map<const void*, int64_t> last_use;    // memory of the device -> which of these used it last
int64_t host_waited = 0;                    // times the host had to wait for the device
std::map<std::string, int64_t> waited_for;  // what for

const void* memory_of(const Tensor& tensor) { return tensor.storage().data(); }

void used(const Tensor& tensor) {
  if (tensor.defined() && tensor.is_cuda()) last_use[memory_of(tensor)] = done_by_default;
}

void host_waits(const std::string& what) {
  host_waited++;
  waited_for[what]++;
}

void finish(int64_t stream, int64_t number) {
  Lock lock(everything);
  auto& waiting = streams[stream].waiting;
  while (!waiting.empty() && waiting.front().number <= number) {
    Copy copy = waiting.front();
    waiting.pop_front();
    copy.to.copy_(copy.from);
  }
}

void finish_all() {
  Lock lock(everything);
  for (auto& [id, stream] : streams) finish(id, stream.begun);
}

Tensor by_address(const Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(c10::kCPU));
}

void spoil(const Tensor& target) {
  if (target.is_non_overlapping_and_dense()) std::memset(target.data_ptr(), GARBAGE, target.nbytes());
}

bool is_there_or_pinned(const Tensor& tensor) { return tensor.is_cuda() || PinnedMemory::holds(tensor.const_data_ptr()); }

Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  Lock lock(everything);
  bool returns_at_once = non_blocking && is_there_or_pinned(to) && is_there_or_pinned(from);
  if (current != DEFAULT) {
    TORCH_CHECK(returns_at_once, "stand-in: a copy on a stream of its own that the host waits for");
    auto& stream = streams[current];
    for (const Tensor* tensor : {static_cast<const Tensor*>(&to), &from})
      TORCH_CHECK(!tensor->is_cuda() || last_use[memory_of(*tensor)] <= stream.default_seen,
                  "stand-in: a copy begins while the default stream may still use its memory");
    stream.waiting.push_back({++stream.begun, by_address(on_cpu(to)), by_address(on_cpu(from))});
    spoil(stream.waiting.back().to);
    return to;
  }
  done_by_default++;
  used(to);
  used(from);
  if (returns_at_once && to.is_cpu()) {  // the host may look before it is there
    auto& stream = streams[DEFAULT];
    stream.waiting.push_back({++stream.begun, by_address(to), on_cpu(from).clone()});
    spoil(to);
    return to;
  }
  if (!(to.is_cuda() && from.is_cuda()) && !returns_at_once) {
    host_waits(to.is_cpu() ? "copy to the host" : "copy from ordinary memory");
    if (to.is_cpu()) finish(DEFAULT, streams[DEFAULT].begun);
  }
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Scalar item(const Tensor& tensor) {
  host_waits("item");
  finish(DEFAULT, streams[DEFAULT].begun);
  return on_cpu(tensor).item();
}

// ------------------------------------------------------------ operations that make or reshape tensors

Tensor empty(IntArrayRef shape, optional<at::ScalarType> dtype, optional<at::Layout>, optional<at::Device>,
             optional<bool>, optional<at::MemoryFormat> format) {
  auto key = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  return at::detail::empty_generic(shape, &device_memory, key, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef shape, IntArrayRef strides, optional<at::ScalarType> dtype, optional<at::Layout>,
                     optional<at::Device>, optional<bool>) {
  return empty_there(shape, strides, c10::dtype_or_default(dtype));
}

const Tensor& resize_(const Tensor& tensor, IntArrayRef shape, optional<at::MemoryFormat>) {
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  size_t bytes = at::detail::computeStorageNbytesContiguous(shape, tensor.element_size(), tensor.storage_offset());
  if (bytes > storage->nbytes()) {
    auto memory = device_memory.allocate(bytes);
    std::memcpy(memory.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(memory));
    storage->set_nbytes(bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(shape);
  return tensor;
}

Tensor& set_(Tensor& tensor, at::Storage storage, int64_t offset, IntArrayRef shape, IntArrayRef strides) {
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(shape, strides, offset);
  return tensor;
}

Tensor& set_to_tensor(Tensor& tensor, const Tensor& other) {
  return set_(tensor, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

Tensor as_strided(const Tensor& tensor, IntArrayRef shape, IntArrayRef strides, optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, shape, strides, offset);
}

// The composite kernel below would add a mask of truth values as zeros and ones.
optional<Tensor> as_bias(const optional<Tensor>& mask, const Tensor& query) {
  if (!mask || mask->scalar_type() != at::kBool) return mask;
  return at::zeros_symint(mask->sym_sizes(), query.options()).masked_fill(mask->logical_not(), -INFINITY);
}

// PyTorch looks for CUDA's kernels by itself here, past the dispatcher. Flash attention takes no mask: one is counted with
// the waits, as something else that a step must not have.
Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const optional<Tensor>& mask,
                 double dropout, bool causal, optional<double> scale, bool enable_gqa) {
  if (mask) waited_for["attention with a mask"]++;
  bool is_plain = query.dim() == 4 && dropout == 0 && !enable_gqa && !(mask && mask->scalar_type() == at::kBool);
  if (is_plain)
    return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, 0, causal, mask, scale));
  return std::get<0>(at::_scaled_dot_product_attention_math(
      query, key, value, as_bias(mask, query), dropout, causal, std::nullopt, scale, enable_gqa));
}

// CUDA's own: `causal` ends with the last key, not with the first ones.
std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor> flash(
    const Tensor& query, const Tensor& key, const Tensor& value, double dropout, bool causal, bool, optional<double> scale) {
  Tensor mask;
  if (causal) {
    auto queries = query.sym_size(2), keys = key.sym_size(2);
    auto whole = query.options().dtype(at::kLong);
    mask = at::arange(at::Scalar(keys), whole) <= at::arange(at::Scalar(keys - queries), at::Scalar(keys), whole).unsqueeze(1);
  }
  auto output = std::get<0>(at::_scaled_dot_product_attention_math(
      query, key, value, causal ? as_bias(mask, query) : std::nullopt, dropout, false, std::nullopt, scale));
  return {output, Tensor(), Tensor(), Tensor(), query.sym_size(2), key.sym_size(2), Tensor(), Tensor(), Tensor()};
}

// ------------------------------------------------------------ everything else: the CPU's kernel on the same memory

const std::set<std::string> TAKE_INDICES_OF_THE_HOST = {
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"};

// What torch 2.11.0+cu130 has for a CPU and not for CUDA, by _dispatch_has_computed_kernel_for_dispatch_key; without
// the CPU's attention, which stands for that of a GPU here.
const std::set<std::string> HAVE_NO_CUDA_KERNEL = {
    "aten::_add_relu", "aten::_add_relu_", "aten::_convert_weight_to_int4pack_for_cpu", "aten::_dyn_quant_matmul_4bit",
    "aten::_dyn_quant_pack_4bit_weight", "aten::_empty_affine_quantized", "aten::_empty_per_channel_affine_quantized",
    "aten::_histogramdd_bin_edges", "aten::_histogramdd_from_bin_cts", "aten::_histogramdd_from_bin_tensors",
    "aten::_spdiags", "aten::_weight_int4pack_mm_for_cpu", "aten::from_file", "aten::histogram", "aten::mkldnn_rnn_layer",
    "aten::mkldnn_rnn_layer_backward", "aten::quantized_gru", "aten::quantized_lstm", "aten::slow_conv3d_forward",
    "aten::to_mkldnn"};

const std::set<std::string> HAVE_THE_HOST_WAIT = {"aten::nonzero", "aten::_unique2", "aten::masked_select", "aten::equal"};

struct Places {
  const std::string& name;
  bool there = false, here = false;

  Tensor seen(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    // A number in a tensor without dimensions is taken from the host, but not by kernels that write to it.
    bool counts = tensor.dim() > 0 || name.find("_fused_") != std::string::npos;
    (tensor.is_cuda() ? there : here) |= tensor.is_cuda() || counts;
    used(tensor);
    return on_cpu(tensor);
  }
};

c10::IValue as_the_cpu_sees(const c10::IValue& value, Places& places) {
  if (value.isTensor()) return places.seen(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> all;
    for (const Tensor& one : value.toTensorVector()) all.push_back(places.seen(one));
    return all;
  }
  if (value.isOptionalTensorList()) {
    c10::List<optional<Tensor>> all;
    for (const optional<Tensor>& one : value.toOptionalTensorVector())
      all.push_back(one ? optional<Tensor>(places.seen(*one)) : std::nullopt);
    return all;
  }
  if (value.isGenerator() && value.toGenerator().device().is_cuda()) {
    places.there = true;
    return static_cast<Numbers*>(value.toGenerator().unsafeGetGeneratorImpl())->cpu;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) {
    places.there = true;
    return c10::Device(c10::kCPU);
  }
  return value;
}

c10::IValue as_it_is_there(const c10::IValue& value) {
  if (value.isTensor()) return moved_there(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> all;
    for (const Tensor& one : value.toTensorVector()) all.push_back(moved_there(one));
    return all;
  }
  return value;
}

// A kernel gave `seen` another size or other memory than `tensor` has.
void follow(const Tensor& tensor, const Tensor& seen) {
  if (!tensor.defined() || !tensor.is_cuda()) return;
  if (tensor.sizes() != seen.sizes()) resize_(tensor, seen.sizes(), std::nullopt);
  if (memory_of(tensor) != memory_of(seen)) on_cpu(tensor).copy_(seen);
}

bool is_written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

void on_the_cpu(const c10::OperatorHandle& operation, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Lock lock(everything);
  const auto& schema = operation.schema();
  const auto& name = schema.name();
  TORCH_CHECK(current == DEFAULT, "stand-in: ", name, " on a stream of its own");
  TORCH_CHECK(!HAVE_NO_CUDA_KERNEL.count(name), "stand-in: ", name, " has no CUDA kernel");
  done_by_default++;
  if (HAVE_THE_HOST_WAIT.count(name)) host_waits(name);

  auto arguments = torch::jit::pop(*stack, schema.arguments().size());
  Places places{name};
  std::vector<c10::IValue> seen;
  for (const auto& argument : arguments) seen.push_back(as_the_cpu_sees(argument, places));
  TORCH_CHECK(!(places.there && places.here) || TAKE_INDICES_OF_THE_HOST.count(name),
              "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name, ")");

  for (const auto& argument : seen) stack->push_back(argument);
  operation.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  auto results = torch::jit::pop(*stack, schema.returns().size());

  std::vector<c10::IValue> written;
  for (size_t place = 0; place < arguments.size(); ++place) {
    if (!is_written(schema.arguments()[place])) continue;
    if (arguments[place].isTensor()) follow(arguments[place].toTensor(), seen[place].toTensor());
    written.push_back(arguments[place]);
  }
  size_t next = 0;
  for (size_t place = 0; place < results.size(); ++place) {
    const auto& result = schema.returns()[place];
    TORCH_CHECK(!result.alias_info() || is_written(result), "stand-in: a view that it does not know, ", name);
    stack->push_back(is_written(result) ? written[next++] : as_it_is_there(results[place]));
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("_local_scalar_dense", item);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("_scaled_dot_product_flash_attention", flash);
  library.impl("as_strided", as_strided);
  library.impl("copy_", copy_);
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("resize_", resize_);
  library.impl("scaled_dot_product_attention", attention);
  library.impl("set_.source_Storage_storage_offset", set_);
  library.impl("set_.source_Tensor", set_to_tensor);
  library.impl("unfold", at::native::unfold);
  library.impl("view", at::native::view);
  library.impl("view_as_complex", at::native::view_as_complex);
  library.impl("view_as_real", at::native::view_as_real);
}

TORCH_LIBRARY_IMPL(aten, AutogradCUDA, library) {
  library.impl("_scaled_dot_product_flash_attention", flash);
  library.impl("scaled_dot_product_attention", attention);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  // PyTorch keeps the hooks it was given first, those of a build without CUDA. Neither has members.
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks();
  using Released = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("in_use", [] { Lock lock(memory_maps); return in_use; }, Released());
  module.def("most", [] { Lock lock(memory_maps); return most; }, Released());
  module.def("sizes", [] {
    Lock lock(memory_maps);
    std::vector<size_t> alive;
    for (auto& [_, size] : DeviceMemory::sizes()) alive.push_back(size);
    return alive;
  }, Released());
  module.def("set_limit", [](int64_t bytes) { Lock lock(memory_maps); limit = bytes; }, Released());
  module.def("forget_most", [] { Lock lock(memory_maps); most = in_use; }, Released());
  module.def("current", [] { return current; });
  module.def("enter", [](int64_t stream) { std::swap(current, stream); return stream; });
  module.def("begun", [](int64_t stream) {
    Lock lock(everything);
    return stream == DEFAULT ? done_by_default : streams[stream].begun;
  }, Released());
  module.def("finish", [](int64_t stream, int64_t number) {
    finish(stream, stream == DEFAULT ? INT64_MAX : number);
  }, Released());
  module.def("finish_all", finish_all, Released());
  module.def("see_default", [](int64_t stream, int64_t number) {
    Lock lock(everything);
    streams[stream].default_seen = std::max(streams[stream].default_seen, number);
  }, Released());
  module.def("host_waited", [] { Lock lock(everything); return host_waited; }, Released());
  module.def("waited_for", [] { Lock lock(everything); return waited_for; }, Released());
}
