internal import Attention
internal import PTX

/// What a plan knows of a launch of Hopper's gradients' kernel.
struct HopperBackwardLaunch: Sendable {
  let problem: AttentionProblem
  let tiling: HopperBackwardTiling
  let scales: GradientScales

  init(_ problem: AttentionProblem, _ tiling: HopperBackwardTiling) {
    (self.problem, self.tiling, scales) = (problem, tiling, GradientScales(problem.scoreUnits))
  }

  /// Blocks of one batch and key/value head, and of the grid.
  var blocksPerHead: Int { (problem.keys + tiling.keys - 1) / tiling.keys }
  var blocks: Int { blocksPerHead * problem.keyValueHeads * problem.batch }
}

/// The parameters of Hopper's gradients' kernel.
final class HopperBackwardParameters {
  let queryMap, keyMap, valueMap, outputGradientMap: TensorMapParameter
  /// 0 where nobody wants them.
  let queryGradientBase, keyGradientBase, valueGradientBase: Register<U64>
  let keyGradientStrides, valueGradientStrides: StrideParameters
  let statistics: StatisticsParameters
  /// N_q, H_kv, and the blocks of one batch and key/value head.
  let queries, keyValueHeads, blocksPerHead: Register<U32>
  let keys: Register<S32>
  let mask: MaskParameters
  let scales: GradientScaleParameters

  private static let lists = DeclaredLists<HopperBackwardLaunch> { _ = HopperBackwardParameters($0, $1) }
  /// Those of a problem's kernels, which know no sinks.
  static func all(_ problem: AttentionProblem) -> [ParameterList<HopperBackwardLaunch>.Entry] { lists[problem] }

  init(_ list: ParameterList<HopperBackwardLaunch>, _ parts: ParameterParts) {
    /// Packed rows: those of a group's heads, query by query.
    func rows(
      _ name: String, _ tensor: CallValue, _ shape: @escaping @Sendable (AttentionProblem) -> TensorShape
    ) -> TensorMapParameter {
      list.tensorMap(name, tensor) {
        let group = $0.problem.groupSize
        return TensorBox(
          $0.problem.scalarType, shape($0.problem), rows: HopperBackwardTiling.rows / group, heads: group)
      }
    }
    queryMap = rows("queries", .queries) { $0.queryShape }
    keyMap = list.tensorMap("keys", .keys) {
      TensorBox($0.problem.scalarType, $0.problem.keyShape, rows: $0.tiling.keys)
    }
    valueMap = list.tensorMap("values", .values) {
      TensorBox($0.problem.scalarType, $0.problem.valueShape, rows: $0.tiling.keys)
    }
    outputGradientMap = rows("output_gradient", .outputGradient) { $0.outputShape }
    queryGradientBase = list.pointer("query_gradient", .queryGradient)
    keyGradientBase = list.pointer("key_gradient", .keyGradient)
    valueGradientBase = list.pointer("value_gradient", .valueGradient)
    keyGradientStrides = list.strides("key_gradient") { TensorSteps(.keyGradient, $0.problem.scalarType) }
    valueGradientStrides = list.strides("value_gradient") { TensorSteps(.valueGradient, $0.problem.scalarType) }
    statistics = StatisticsParameters(list) { $0.problem }
    queries = list.number("query_count", U32.self) { $0.problem.queries }
    keyValueHeads = list.number("key_value_heads", U32.self) { $0.problem.keyValueHeads }
    blocksPerHead = list.number("blocks_per_head", U32.self) { $0.blocksPerHead }
    keys = list.number("key_count", S32.self) { $0.problem.keys }
    mask = MaskParameters(list, parts) { $0.problem }
    scales = GradientScaleParameters(list) { $0.scales }
  }
}
