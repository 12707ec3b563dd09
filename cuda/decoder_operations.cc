// Streams, copies and graphs of a decoder on the device.
#include "cuda/decoder_operations.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "cuda/status.h"
#include "nibble/cuda.h"

namespace nibble::cuda {
namespace {

Result<std::shared_ptr<void>> MakeStream() {
  cudaStream_t stream = nullptr;
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return std::shared_ptr<void>(
      stream, [](void* s) { (void)cudaStreamDestroy(static_cast<cudaStream_t>(s)); });
}

Status CopyBytes(void* to, const void* from, size_t bytes, void* stream) {
  return Copy({static_cast<std::byte*>(to), bytes}, {static_cast<const std::byte*>(from), bytes},
              stream);
}

Result<std::shared_ptr<void>> Record(void* stream, const std::function<Status()>& work) {
  const cudaStream_t queue = StreamOf(stream);
  NIBBLE_CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(queue, cudaStreamCaptureModeThreadLocal));
  Status status = work();
  cudaGraph_t graph = nullptr;
  const Status ended = ToStatus(cudaStreamEndCapture(queue, &graph), "graph");
  cudaGraphExec_t recorded = nullptr;
  if (status.ok()) status = ended;
  if (status.ok()) status = ToStatus(cudaGraphInstantiate(&recorded, graph, 0), "graph");
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  if (!status.ok()) return status;
  return std::shared_ptr<void>(
      recorded, [](void* g) { (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(g)); });
}

Status Replay(void* recorded, void* stream) {
  return ToStatus(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recorded), StreamOf(stream)),
                  "graph");
}

Result<QuantizedTensor> TensorToDevice(const QuantizedTensor& tensor, void* stream) {
  return ToDevice(tensor, stream);
}

}  // namespace

const DecoderBackend& Decoder() {
  static const DecoderBackend decoder = [] {
    DecoderBackend made = {};
    made.make_stream = MakeStream;
    made.copy = CopyBytes;
    made.synchronize = Synchronize;
    made.to_device = TensorToDevice;
    made.record = Record;
    made.replay = Replay;
    SetLaunches(&made);
    return made;
  }();
  return decoder;
}

}  // namespace nibble::cuda
