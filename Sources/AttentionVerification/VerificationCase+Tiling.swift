package import AttentionKernels
package import FlashAttention
internal import PTX

extension VerificationCase {
  /// A random tiling that there is a kernel with: any rung of the ladder, any way of laying out, keeping, storing and
  /// summing. It belongs to what the kernel is made for, so that as many kernels serve all cases as without it.
  package func drawTiling(on gpu: GPULimits) throws(AttentionError) -> ForwardTiling {
    let kernelNumber = number % (kernels ?? .max)
    var random = RandomSource(seed: seed, stream: UInt64(kernelNumber) | 1 << 41)
    // Rungs take turns, so that few kernels have all of them.
    let rung = Rung.allCases[kernelNumber % Rung.allCases.count]
    for _ in 0..<200 {
      let isShared = rung.sharing != .none
      let columns = rung.splitsKeys ? random.pick([2, 4]) : 1
      let tiling = ForwardTiling(
        warps: random.pick([4, 8]), warpTiling: rung.splitsKeys ? .queriesAndKeys(columns: columns) : .queries,
        sharing: rung.sharing, rowTilesPerWarp: random.int(1...2), tileKeys: random.pick([32, 48, 64, 96, 128]),
        stages: random.int(1...3), slices: isShared ? random.pick([1, 2, 4]) : 1,
        layout: random.pick(SharedTile.Layout.allCases),
        keepsQueries: rung.sharing == .queriesKeysAndValues || random.int(0...1) == 0,
        store: random.pick(ForwardTiling.Store.allCases),
        sums: problem.scalarType == .f16 && random.int(0...2) == 0 ? .f16 : .f32, blocksPerMultiprocessor: 1)
      do throws(AttentionError) {
        _ = try KernelPlan(problem, on: gpu, tiling, of: ForwardFamily.self)
        return tiling
      } catch {
        guard case .tiling = error else { throw error }
      }
    }
    // Where the rung has no kernel for the dimension, the plan's own choice.
    let choice = try KernelPlan(problem, on: gpu, options: KernelOptions(family: ForwardFamily.name))
    return choice.tiling as! ForwardTiling
  }
}
