internal import Attention
package import AttentionKernels
internal import CUDADriver
internal import GPURuntime
internal import PTX
internal import Synchronization

/// A plan on a GPU: its launches, and their kernels once these are loaded.
final class GPUPlan: Sendable {
  let plan: KernelPlan
  let gpu: GPU
  private let ready = Mutex<[ReadyLaunch]?>(nil)
  private let families: [any KernelFamily.Type]
  private let other = Mutex<GPUPlan?>(nil)
  private let maps = Mutex(EncodedMaps())

  /// A launch, but for what only a call knows.
  struct ReadyLaunch: Sendable {
    let kernel: LoadedKernel
    let shape: LaunchShape
    let launch: LaunchSequence.Launch

    var arguments: ArgumentTemplate { launch.arguments }
  }

  init(
    _ problem: AttentionProblem, on gpu: GPU, _ options: KernelOptions,
    families: [any KernelFamily.Type] = KernelFamilies.all
  ) throws(AttentionError) {
    (self.gpu, self.families) = (gpu, families)
    plan = try KernelPlan(problem, on: gpu.limits, options: options, families: families)
  }

  /// Compiles and loads the kernels, unless that was done before.
  func prepare() throws(CUDAError) -> [ReadyLaunch] {
    if let made = ready.withLock({ $0 }) { return made }
    var made: [ReadyLaunch] = []
    // Without rows there is nothing to write.
    for launch in plan.launches.launches where launch.blocks > 0 {
      made.append(
        ReadyLaunch(
          kernel: try gpu.load(launch.kernel, sharedByteCount: launch.sharedByteCount),
          shape: LaunchShape(
            blocks: launch.blocks, threads: launch.threads, sharedByteCount: launch.sharedByteCount,
            attributes: launch.overtakes ? [.programmaticStreamSerialization] : []),
          launch: launch))
    }
    let all = made
    ready.withLock { $0 = all }
    return all
  }

  /// The kernels that take a call whose strides the copy engine does not: those without tensor maps. Made when there is such
  /// a call.
  private func withoutMaps() throws(AttentionError) -> GPUPlan {
    if let made = other.withLock({ $0 }) { return made }
    let made = try GPUPlan(
      plan.problem, on: gpu, KernelOptions(family: plan.familyWithoutMaps), families: families)
    return other.withLock { other in
      let first = other ?? made
      other = first
      return first
    }
  }

  /// Puts a call into a stream; nothing is waited for.
  func launch(
    _ tensors: AttentionTensors<GPUMemory>, workspace: UInt64?, counters: UInt64?, stream: StreamHandle
  ) throws(AttentionError) {
    try tensors.check(plan.problem)
    var workspace = workspace
    if workspace == nil && plan.launches.workspaceByteCount > 0 {
      if !plan.problem.hasWholeKeys { throw .notInThePlan(tensor: "workspace", isMissing: true) }
      workspace = try gpu.workspace(byteCount: plan.launches.workspaceByteCount, stream: stream)
    }
    if let workspace, workspace % 16 != 0 {
      throw .alignment(tensor: "the workspace", what: "address", bytes: Int(truncatingIfNeeded: workspace))
    }
    if let counters, counters % 4 != 0 {
      throw .alignment(tensor: "the counters", what: "address", bytes: Int(truncatingIfNeeded: counters), multiple: 4)
    }
    // Nothing that is not asked for is looked at.
    var call = KernelCall(
      tensors, workspace: plan.launches.workspaceByteCount > 0 ? workspace ?? 0 : 0,
      counters: plan.launches.counterByteCount > 0 ? counters : nil)
    guard let maps = maps(of: call) else {
      return try withoutMaps().launch(tensors, workspace: workspace, counters: counters, stream: stream)
    }
    if call.counters == nil && plan.launches.hasOwnCounters { call.counters = try gpu.drawCounter(stream: stream) }
    let own = call
    try gpu.reporting { () throws(CUDAError) in try put(own, maps, in: stream) }
  }

  /// The maps of a call's tensors: those that are known, and those that must be encoded.
  private struct CallMaps {
    let all: [(tensor: ArgumentTemplate.MappedTensor, bytes: EncodedMaps.Bytes?)]
    var new: [(tensor: ArgumentTemplate.MappedTensor, map: TensorMap)] = []
  }

  /// Those of a call; nil where the copy engine takes none of some tensor's strides. (Of the launch that computes the attention, or the
  /// gradients of keys and values and perhaps of queries: no other has maps.)
  private func maps(of call: borrowing KernelCall) -> CallMaps? {
    let arguments = plan.launches.attention.arguments
    let mapped = arguments.mappedTensors(call)
    let known = mapped.isEmpty ? [] : maps.withLock { maps in mapped.map { maps[$0] } }
    var own = CallMaps(all: Array(zip(mapped, known)))
    for (tensor, bytes) in own.all where bytes == nil {
      guard let map = arguments.map(of: tensor) else { return nil }
      own.new.append((tensor, map))
    }
    return own
  }

  /// Puts a call for gradients into a stream; nothing is waited for.
  func launch(
    _ tensors: GradientTensors<GPUMemory>, workspace: UInt64?, stream: StreamHandle
  ) throws(AttentionError) {
    try tensors.check(plan.problem)
    if let workspace, workspace % 16 != 0 {
      throw .alignment(tensor: "the workspace", what: "address", bytes: Int(truncatingIfNeeded: workspace))
    }
    var call = KernelCall(tensors, workspace: workspace ?? 0)
    if workspace == nil {
      // Not a workspace of attention, whose first bytes are counters that must stay zero.
      call.workspace = try gpu.scratch(byteCount: plan.launches.workspaceByteCount, stream: stream)
    }
    guard let maps = maps(of: call) else {
      return try withoutMaps().launch(tensors, workspace: call.workspace, stream: stream)
    }
    let own = call
    try gpu.reporting { () throws(CUDAError) in try put(own, maps, in: stream) }
  }

  private func put(_ call: KernelCall, _ maps: CallMaps, in stream: StreamHandle) throws(CUDAError) {
    let launches = try prepare()
    try gpu.context.use { () throws(CUDAError) in
      for launch in launches where launch.launch.isNeeded(by: call) {
        try withUnsafeTemporaryAllocation(
          byteCount: launch.arguments.byteCount, alignment: 64
        ) { (buffer) throws(CUDAError) in
          launch.arguments.write(call, to: buffer)
          if !launch.arguments.offsets.isEmpty {
            for (tensor, bytes) in maps.all {
              if let bytes { buffer.storeBytes(of: bytes, toByteOffset: tensor.offset, as: EncodedMaps.Bytes.self) }
            }
            for (tensor, map) in maps.new {
              let place = tensor.offset..<tensor.offset + TensorMap.byteCount
              try launch.kernel.library.encode(map, to: UnsafeMutableRawBufferPointer(rebasing: buffer[place]))
              let bytes = buffer.loadUnaligned(fromByteOffset: tensor.offset, as: EncodedMaps.Bytes.self)
              self.maps.withLock { $0.remember(bytes, of: tensor) }
            }
          }
          try launch.kernel.library.launch(
            launch.shape, arguments: buffer, offsets: launch.arguments.offsets, in: stream)
        }
      }
    }
  }

  /// Computes on host memory: copies everything to the GPU and the results back, cache and all where keys are appended.
  func run(_ tensors: AttentionTensors<HostMemory>) throws(AttentionError) {
    let problem = plan.problem
    let upload = Upload(to: gpu)
    // Freed in the stream's order, but not before the work is in it.
    defer { withExtendedLifetime(upload) {} }
    let (k, v) = (try upload.tensor(tensors.keys), try upload.tensor(tensors.values))
    let o = try upload.room(problem.outputShape.elementCount * problem.outputType.byteCount)
    // Parts without keys are not written, but copied back.
    if problem.leavesParts { try o.fill(0) }
    let statistics = try upload.room(problem.logSumExpCount * 4)
    let layout = HostCopy.layout(of: tensors.output.readOnly) ?? .bhnd
    let output = DeviceTensorView(
      address: o.address, scalarType: problem.outputType, shape: problem.outputShape, layout: layout)
    let (queries, entries) = (
      try upload.tensor(tensors.queries).view, try upload.entries(tensors.entries, problem)
    )
    let onGPU: AttentionTensors<GPUMemory>
    if let new = tensors.newKeys {
      onGPU = AttentionTensors(
        queries: queries, keys: k.view, values: v.view, appending: try upload.newKeys(new), output: output,
        logSumExp: statistics.address, entries: entries)
    } else {
      onGPU = AttentionTensors(
        queries: queries, keys: k.view, values: v.view, output: output, logSumExp: statistics.address,
        entries: entries)
    }
    let bytes = plan.launches.workspaceByteCount
    let workspace = bytes == 0 ? nil : try gpu.zeroedBuffer(byteCount: bytes)
    defer { withExtendedLifetime(workspace) {} }
    try launch(onGPU, workspace: workspace?.address, counters: nil, stream: gpu.stream.handle)
    if problem.logSumExpCount > 0 {
      try HostCopy.download(o, layout, to: tensors.output)
      if let logSumExp = tensors.logSumExp { try statistics.copy(to: UnsafeMutableRawBufferPointer(logSumExp)) }
    }
    if tensors.newKeys == nil { return }
    for (uploaded, view) in [(k.buffer, tensors.keys), (v.buffer, tensors.values)] {
      // The caller gave it to be written.
      try HostCopy.download(
        uploaded, HostCopy.layout(of: view) ?? .bhnd, to: MutableTensorView(mutating: view))
    }
  }

  /// Computes gradients on host memory: copies everything to the GPU and the results back.
  func run(_ tensors: GradientTensors<HostMemory>) throws(AttentionError) {
    let problem = plan.problem
    let upload = Upload(to: gpu)
    // Freed in the stream's order, but not before the work is in it.
    defer { withExtendedLifetime(upload) {} }
    func statistics(_ floats: UnsafeMutableBufferPointer<Float>?) throws(AttentionError) -> UInt64? {
      try upload.list(floats.map { Array($0) })
    }
    var results: [(buffer: GPUBuffer, layout: TensorLayout, host: MutableTensorView)] = []
    func room(_ gradient: MutableTensorView?) throws(AttentionError) -> DeviceTensorView? {
      guard let gradient else { return nil }
      let buffer = try upload.room(gradient.shape.elementCount * gradient.scalarType.byteCount)
      let layout = HostCopy.layout(of: gradient.readOnly) ?? .bhnd
      results.append((buffer, layout, gradient))
      return DeviceTensorView(
        address: buffer.address, scalarType: gradient.scalarType, shape: gradient.shape, layout: layout)
    }
    let ofSinks = try tensors.sinkGradient.map { (floats) throws(AttentionError) in
      try upload.room(floats.count * 4)
    }
    let onGPU = GradientTensors<GPUMemory>(
      queries: try upload.tensor(tensors.queries).view, keys: try upload.tensor(tensors.keys).view,
      values: try upload.tensor(tensors.values).view, output: try upload.tensor(tensors.output).view,
      logSumExp: try statistics(tensors.logSumExp) ?? 0, outputGradient: try upload.tensor(tensors.outputGradient).view,
      logSumExpGradient: try statistics(tensors.logSumExpGradient), queryGradient: try room(tensors.queryGradient),
      keyGradient: try room(tensors.keyGradient), valueGradient: try room(tensors.valueGradient),
      sinkGradient: ofSinks?.address,
      entries: try upload.entries(tensors.entries, problem))
    let workspace = try upload.room(plan.launches.workspaceByteCount)
    try launch(onGPU, workspace: workspace.address, stream: gpu.stream.handle)
    if let ofSinks, let floats = tensors.sinkGradient {
      try ofSinks.copy(to: UnsafeMutableRawBufferPointer(floats))
    }
    for (buffer, layout, host) in results where host.shape.elementCount > 0 {
      try HostCopy.download(buffer, layout, to: host)
    }
  }

  /// What the driver made of the kernel that computes the attention, where it is loaded.
  var resources: Library.Resources? { kernel?.resources(on: gpu) }

  private var kernel: LoadedKernel? {
    // Those without blocks are never loaded.
    let own = plan.launches.attention.kernel.name
    return ready.withLock { $0 }?.first { $0.launch.kernel.name == own }?.kernel
  }
}

extension GPUPlan: CustomStringConvertible {
  var description: String {
    guard let kernel, let resources else { return "\(plan)" }
    return "\(plan)\n" + kernel.library.summary(resources, of: plan.launches.attention.registerBudget)
      + callsWithoutMaps
  }

  private var callsWithoutMaps: String {
    if plan.launches.attention.arguments.offsets.isEmpty { return "" }
    let ragged =
      plan.problem.hasWholeKeys
      ? "" : ", beyond 2^34 of rows, or of sequences or pages that do not lie whole rows apart,"
    return
      "\ncalls with strides below zero or beyond 2^40 bytes\(ragged) run by the \(plan.familyWithoutMaps) kernels instead"
  }
}

extension GPU {
  /// What plans must know of it.
  package var limits: GPULimits {
    let target = Target(device.capability)
    let typical = GPULimits.typical(of: target)
    // Some drivers report 0 for a rate that they do not know, by which no cost can be divided.
    return GPULimits(
      name: device.name, target: target, multiprocessors: device.multiprocessors,
      sharedBytesPerBlock: device.sharedBytesPerBlock,
      sharedBytesPerMultiprocessor: device.sharedBytesPerMultiprocessor,
      clock: device.clock > 0 ? device.clock : typical.clock,
      bandwidth: device.bandwidth > 0 ? device.bandwidth : typical.bandwidth, cacheBytes: device.cacheBytes,
      driverVersion: device.driver.version)
  }
}
