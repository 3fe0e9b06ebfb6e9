internal import Attention
internal import PTX

/// The parameters of Hopper's decode kernel: those of the others, and the copy engine's maps.
final class HopperDecodeParameters {
  let work: DecodeParameters
  let keyMap, valueMap: TensorMapParameter
  let keyBoxes: KeyBoxes.Parameters

  private static let lists = DeclaredLists<DecodeLaunch> { _ = HopperDecodeParameters($0, $1) }
  /// Those of a problem's kernels.
  static func all(_ problem: AttentionProblem) -> [ParameterList<DecodeLaunch>.Entry] { lists[problem] }

  init(_ list: ParameterList<DecodeLaunch>, _ parts: ParameterParts) {
    work = DecodeParameters(list, parts)
    @Sendable func box(_ launch: DecodeLaunch, isKey: Bool) -> TensorBox {
      KeyBoxes.Cut(launch.problem, tileKeys: launch.tileKeys).box(launch.problem, isKey: isKey)
    }
    keyMap = list.tensorMap("key_map", .keys) { box($0, isKey: true) }
    valueMap = list.tensorMap("value_map", .values) { box($0, isKey: false) }
    keyBoxes = KeyBoxes.Parameters(
      list, pageTable: work.pageTable, pageTableStride: work.pageTableStride, pages: work.cachePlaces
    ) { $0.problem }
  }
}
