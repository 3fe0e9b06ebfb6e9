import Attention
import Glibc

/// A tensor that ends exactly where readable memory ends: one byte further, and the process dies.
final class GuardedTensor {
  let view: MutableTensorView
  private let mapping: UnsafeMutableRawPointer
  private let mappingSize: Int

  init(
    _ shape: TensorShape, _ type: ScalarType, layout: TensorLayout = .bhnd, value: (Int) -> Float = { _ in 0 }
  ) {
    let page = sysconf(Int32(_SC_PAGESIZE))
    let bytes = shape.elementCount * type.byteCount
    let readable = (bytes + page - 1) / page * page
    mappingSize = readable + page
    mapping = mmap(nil, mappingSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
    mprotect(mapping + readable, page, PROT_NONE)
    let base = mapping + readable - bytes
    for i in 0..<shape.elementCount { type.store(value(i), to: base, at: i) }
    view = MutableTensorView(base: base, scalarType: type, shape: shape, layout: layout)
  }

  deinit { munmap(mapping, mappingSize) }
}
