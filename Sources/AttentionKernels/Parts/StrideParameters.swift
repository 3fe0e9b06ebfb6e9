package import PTX

/// Bytes from one batch (or page), head and row of a tensor to the next, as parameters of a kernel.
package struct StrideParameters {
  package let batch, head, row: Register<U64>
}
