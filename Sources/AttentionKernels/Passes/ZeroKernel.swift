internal import Attention
package import PTX

/// Fills a gradient of packed rows with zeros, so that those of no sequence are written, too.
///
///     a block for 64 rows of a head; each thread 16 bytes after 16 bytes
package struct ZeroKernel: KernelSource {
  /// Threads of a block, and rows that it takes.
  static let (threads, rows) = (256, 64)
  /// Elements of a row.
  package let dimension: Int

  /// The entry point's name.
  package var name: String { "zero_d\(dimension)" }

  private struct Plan: Sendable {
    let tensor: CallValue
    let shape: TensorShape
    let type: ScalarType

    var blocksPerHead: Int { (shape.length + rows - 1) / rows }
  }

  /// A launch for a packed gradient.
  static func launch(_ tensor: CallValue, _ shape: TensorShape, _ type: ScalarType) -> LaunchSequence.Launch {
    let plan = Plan(tensor: tensor, shape: shape, type: type)
    return LaunchSequence.Launch(
      ZeroKernel(dimension: shape.dimension), blocks: plan.blocksPerHead * shape.heads, threads: threads,
      gradients: [tensor], arguments: ArgumentTemplate(parameters, for: plan))
  }

  private static let parameters = ParameterList<Plan>.declared { _ = Parameters($0) }

  private struct Parameters {
    let base: Register<U64>
    let strides: StrideParameters
    let length, blocksPerHead: Register<U32>

    init(_ list: ParameterList<Plan>) {
      base = list.pointer("tensor") { .address($0.tensor) }
      strides = list.strides("tensor") { TensorSteps($0.tensor, $0.type, isPacked: true) }
      length = list.number("length", U32.self) { $0.shape.length }
      blocksPerHead = list.number("blocks_per_head", U32.self) { $0.blocksPerHead }
    }
  }

  /// The kernel.
  package func kernel() throws(KernelError) -> Kernel {
    try Kernel.build(name, threadsPerBlock: Self.threads) { k in
      let p = Parameters(ParameterList(k))
      let block = k.special(.blockX)
      let head = block / p.blocksPerHead
      let first = (block - head * p.blocksPerHead) * Self.rows
      let count = k.minimum(p.length - first, k.constant(Self.rows, U32.self))
      let base = p.base + k.wide(head) * p.strides.head
      let chunks = dimension / 8
      let zeros = (0..<4).map { _ in k.constant(0, U32.self) }
      k.loop(from: k.special(.threadX), to: count * chunks, by: Self.threads) { item in
        let row = item / chunks
        k.store(zeros, global: base + k.wide(first + row) * p.strides.row + k.wide((item - row * chunks) * 16))
      }
    }
  }
}
