package import Attention

/// What only a call knows: the addresses and strides of its tensors and lists, each in its place of a table.
package enum CallValue: Int, CaseIterable, Sendable {
  // Of each tensor its address and its strides in elements, in this order.
  case queries, queryBatch, queryHead, queryRow
  case keys, keyBatch, keyHead, keyRow
  case values, valueBatch, valueHead, valueRow
  case output, outputBatch, outputHead, outputRow
  case newKeys, newKeyBatch, newKeyHead, newKeyRow
  case newValues, newValueBatch, newValueHead, newValueRow
  case outputGradient, outputGradientBatch, outputGradientHead, outputGradientRow
  case queryGradient, queryGradientBatch, queryGradientHead, queryGradientRow
  case keyGradient, keyGradientBatch, keyGradientHead, keyGradientRow
  case valueGradient, valueGradientBatch, valueGradientHead, valueGradientRow
  case logSumExp, lengths, batchIndex, leftPadding, pageTable, queryStarts, queryCounts, keyStarts
  case queryScales, keyScales, valueScales, newKeyStarts, cosines, sines, positions, workspace, counters
  case logSumExpGradient, sinks, sinkGradient, keyRanges
}

/// A call on memory of a GPU: its tensors, and the memory that its kernels work in.
package struct KernelCall {
  /// Where everything is.
  package var tensors: AttentionTensors<GPUMemory>
  /// `LaunchSequence.workspaceByteCount` bytes, of which the first `counterByteCount` are zero between calls, unless
  /// there are counters apart; 0 where none are needed.
  package var workspace: UInt64
  /// `LaunchSequence.counterByteCount` bytes that are zero between calls; nil where they are the workspace's first.
  package var counters: UInt64?
  /// Where gradients are asked for: those of the results, and where those of the inputs go.
  private var gradients: GradientTensors<GPUMemory>?

  /// A call.
  package init(_ tensors: AttentionTensors<GPUMemory>, workspace: UInt64 = 0, counters: UInt64? = nil) {
    (self.tensors, self.workspace, self.counters) = (tensors, workspace, counters)
  }

  /// A call for gradients.
  package init(_ gradients: GradientTensors<GPUMemory>, workspace: UInt64 = 0) {
    self.init(
      AttentionTensors(
        queries: gradients.queries, keys: gradients.keys, values: gradients.values, output: gradients.output,
        logSumExp: gradients.logSumExp, entries: gradients.entries), workspace: workspace)
    self.gradients = gradients
  }

  /// Whether one of some gradients is asked for.
  package func wants(_ values: [CallValue]) -> Bool {
    values.contains {
      switch $0 {
      case .queryGradient: gradients?.queryGradient != nil
      case .keyGradient: gradients?.keyGradient != nil
      case .valueGradient: gradients?.valueGradient != nil
      case .sinkGradient: gradients?.sinkGradient != nil
      default: false
      }
    }
  }

  /// Makes the table: 0 for what is not there.
  func withTable<Result>(_ body: (UnsafePointer<UInt64>) -> Result) -> Result {
    withUnsafeTemporaryAllocation(of: UInt64.self, capacity: CallValue.allCases.count) { table in
      let base = table.baseAddress!
      base.update(repeating: 0, count: table.count)
      func put(_ value: CallValue, _ address: UInt64?) { base[value.rawValue] = address ?? 0 }
      func put(_ first: CallValue, _ view: DeviceTensorView) {
        let steps = view.steps
        base[first.rawValue] = view.address
        base[first.rawValue + 1] = UInt64(bitPattern: Int64(steps.batch))
        base[first.rawValue + 2] = UInt64(bitPattern: Int64(steps.heads))
        base[first.rawValue + 3] = UInt64(bitPattern: Int64(steps.length))
      }
      put(.queries, tensors.queries)
      put(.keys, tensors.keys)
      put(.values, tensors.values)
      put(.output, tensors.output)
      put(.logSumExp, tensors.logSumExp)
      let entries = tensors.entries
      put(.lengths, entries.lengths)
      put(.batchIndex, entries.batchIndex)
      put(.leftPadding, entries.leftPadding)
      put(.pageTable, entries.pageTable)
      put(.queryStarts, entries.queryStarts)
      put(.queryCounts, entries.queryCounts)
      put(.keyStarts, entries.keyStarts)
      put(.queryScales, entries.queryScales)
      put(.keyScales, entries.keyScales)
      put(.valueScales, entries.valueScales)
      put(.sinks, entries.sinks)
      put(.keyRanges, entries.ranges)
      if let new = tensors.newKeys {
        put(.newKeys, new.keys)
        put(.newValues, new.values)
        put(.newKeyStarts, new.starts)
        put(.cosines, new.rotary?.cosines.address)
        put(.sines, new.rotary?.sines.address)
        put(.positions, new.positions)
      }
      if let gradients {
        put(.outputGradient, gradients.outputGradient)
        put(.logSumExpGradient, gradients.logSumExpGradient)
        if let gradient = gradients.queryGradient { put(.queryGradient, gradient) }
        if let gradient = gradients.keyGradient { put(.keyGradient, gradient) }
        if let gradient = gradients.valueGradient { put(.valueGradient, gradient) }
        put(.sinkGradient, gradients.sinkGradient)
      }
      put(.workspace, workspace)
      put(.counters, counters ?? workspace)
      return body(base)
    }
  }
}
