internal import PTX

/// Bytes from one batch (or page), head and row of a tensor to the next, as parameters of a kernel.
struct StrideParameters {
  let batch, head, row: Register<U64>

  init(_ k: KernelBuilder, _ tensor: String) {
    batch = k.parameter("\(tensor)_batch_stride", U64.self)
    head = k.parameter("\(tensor)_head_stride", U64.self)
    row = k.parameter("\(tensor)_row_stride", U64.self)
  }
}
