internal import PTX

/// In which order the parts of heads are worked on, where some take longer than others because a mask cuts what they see: a
/// section is some heads together, of which the longest parts come first, those of all its heads. So the last parts that
/// begin are short, and no multiprocessor waits long for another; and a section is small enough for the L2 cache to hold what
/// its heads share.
struct HeadSections {
  let k: KernelBuilder
  /// Heads of a section.
  let size: Register<U32>

  /// Heads of a section of blocks: `bench backward` and `bench` with causal masks, NVIDIA H200, 2026-11-30
  /// (Documentation/GPULog.md).
  private static let sizeOfBlocks = 16

  /// The head of a number, and which of its parts, the longest being 0.
  ///
  /// - Parameter heads: all; numbers behind their last part have some place, too.
  func place(
    ofNumber number: Register<U32>, partsPerHead: Register<U32>, heads: Register<U32>
  ) -> (head: Register<U32>, part: Register<U32>) {
    let first = (number / (partsPerHead * size)) * size
    let together = k.maximum(k.minimum(heads - first, size), k.constant(1, U32.self))
    let own = number - first * partsPerHead
    return (first + own % together, own / together)
  }

  /// The same for a block of a grid that has a block for each part.
  static func placeOfBlock(
    _ k: KernelBuilder, partsPerHead: Register<U32>
  ) -> (head: Register<U32>, part: Register<U32>) {
    HeadSections(k: k, size: k.constant(sizeOfBlocks, U32.self)).place(
      ofNumber: k.special(.blockX), partsPerHead: partsPerHead, heads: k.special(.blocksX) / partsPerHead)
  }
}
