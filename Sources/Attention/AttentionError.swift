/// Why attention cannot be computed: what was asked, what is possible, what to do.
public enum AttentionError: Error, Hashable, Sendable {
  /// Two tensors that must agree in an extent do not.
  case mismatch(axis: String, first: String, firstExtent: Int, second: String, secondExtent: Int)
  /// An extent is negative, or zero where there must be something.
  case extent(tensor: String, axis: String, value: Int)
  /// The tensors are larger than an address can count.
  case tooLarge(tensor: String, shape: TensorShape)
  /// The query heads cannot be shared out over the key/value heads.
  case headsNotDivisible(queryHeads: Int, keyValueHeads: Int)
  /// The path takes no such head dimension.
  case dimension(tensor: String, value: Int, path: String, multiple: Int, limit: Int)
  /// The tensors differ in type.
  case mixedTypes(first: String, firstType: ScalarType, second: String, secondType: ScalarType)
  /// A view handed to a plan is not of the shape that the plan is for.
  case notThePlan(tensor: String, given: TensorShape, planned: TensorShape)
  /// A number of a sequence that says where its keys are is none that there can be.
  case cacheEntry(String, sequence: Int, value: Int, limit: Int)
  /// There are not as many numbers as sequences.
  case cacheEntries(String, count: Int, batch: Int)
  /// A tensor that the plan needs is not there, or one that it knows nothing of is.
  case notInThePlan(tensor: String, isMissing: Bool)
  /// The log-sum-exp buffer has another size.
  case logSumExpCount(given: Int, needed: Int)
  /// A side of the window is negative.
  case window(side: String, value: Int)
  /// The scale is no finite number in f32.
  case scale(Double)
  /// The softcap is no positive finite number in f32.
  case softcap(Double)
  /// The device has no kernel for the type.
  case typeOnDevice(ScalarType, device: String, possible: String)
  /// Attention is not computed in a type that caches may have.
  case typeOfCaches(ScalarType)
  /// What a cache of another type, or new keys in one, ask for and the device lacks; the reason is a sentence.
  case unsupported(String)
  /// A cache has not enough free pages.
  case cacheFull(needed: Int, free: Int, pageSize: Int)
  /// A sequence of a cache would have more keys than one can have.
  case sequenceTooLong(length: Int, limit: Int)
  /// A sequence was freed, or is one of another cache.
  case unknownSequence
  /// The device's kernels cannot count that far.
  case lengthOnDevice(tensor: String, length: Int, device: String, limit: Int)
  /// A pointer or a stride is no multiple of what the device's copies need, mostly 16 bytes.
  case alignment(tensor: String, what: String, bytes: Int, multiple: Int = 16)
  /// A stride leads out of what an address can count.
  case stride(tensor: String, axis: String, elements: Int)
  /// Elements of a tensor that is written lie in the same memory.
  case overlappingOutput(tensor: String, strides: TensorStrides)
  /// A tensor that is written shares memory with one that is read meanwhile.
  case sharedMemory(written: String, read: String)
  /// There is not so much memory on the host.
  case memory(what: String, byteCount: Int)
  /// There are not as many elements, or bytes, as a shape has.
  case elementCount(tensor: String, needed: String, given: Int)
  /// A slice of a tensor was asked for that leads out of it.
  case slice(axis: String, range: Range<Int>, extent: Int)
  /// A tiling that was asked for cannot be had.
  case tiling(String, reason: String)
  /// The device cannot be used; the reason is a sentence.
  case deviceUnavailable(device: String, reason: String)
  /// The device failed at work; the reason is a sentence.
  case deviceFailed(device: String, kind: DeviceFailure, reason: String)
}

/// What kind of failure a device had, by which a program decides what to do next.
public enum DeviceFailure: Hashable, Sendable {
  /// Memory ran out: free some, or ask for less, and try again.
  case outOfMemory
  /// The context is lost, or is another process's: nothing more can be done on the device in this one.
  case lost
  /// The device or its driver cannot do what the kernels need.
  case unsupported
  /// A call of the driver failed for another reason.
  case other
}

extension AttentionError: CustomStringConvertible {
  /// The sentence that a user reads.
  public var description: String {
    switch self {
    case .mismatch(let axis, let first, let firstExtent, let second, let secondExtent):
      "\(first) has \(axis) \(firstExtent), but \(second) has \(axis) \(secondExtent); they must be the same."
    case .extent(let tensor, let axis, let value):
      "The \(axis) of \(tensor) is \(value); it must be \(axis == "length" || axis == "batch" ? "0 or more" : "at least 1")."
    case .tooLarge(let tensor, let shape):
      "\(tensor) (\(shape)) has more elements than memory can hold; check its extents."
    case .headsNotDivisible(let queryHeads, let keyValueHeads):
      "\(queryHeads) query heads cannot share \(keyValueHeads) key/value heads evenly; the query heads must be a "
        + "multiple of the key/value heads."
    case .dimension(let tensor, let value, let path, let multiple, let limit):
      "The head dimension of \(tensor) is \(value); the \(path) takes multiples of \(multiple) from \(multiple) to "
        + "\(limit). Pad the dimension with zeros up to the next multiple (and keep the scale)."
    case .mixedTypes(let first, let firstType, let second, let secondType):
      "\(first) is \(firstType), but \(second) is \(secondType); convert them to one type."
    case .notThePlan(let tensor, let given, let planned):
      "\(tensor) has \(given), but the plan was made for \(planned); make a plan for the new shape."
    case .cacheEntry(let what, let sequence, let value, let limit):
      "The \(what) of sequence \(sequence) is \(value); it must be from 0 to \(limit)."
    case .cacheEntries(let what, let count, let batch):
      "There are \(count) \(what) for \(batch) sequences; give one for each."
    case .notInThePlan(let tensor, let isMissing):
      isMissing
        ? "There is no \(tensor), and the plan needs it; give its address."
        : "There is a \(tensor), and the plan was made without; leave it out, or make a plan with it."
    case .logSumExpCount(let given, let needed):
      "The log-sum-exp buffer holds \(given) values; batch x query heads x queries needs \(needed)."
    case .window(let side, let value):
      "The window reaches \(value) keys to the \(side); it must be 0 or more, or unlimited."
    case .scale(let value):
      "The scale is \(value); it must be a number that f32 can hold. Leave it out for 1/sqrt(dimension)."
    case .softcap(let value):
      "The softcap is \(value); it must be a number above 0 that f32 can hold. Leave it out for no cap."
    case .typeOnDevice(let type, let device, let possible):
      "The \(device) has no kernel for \(type); it takes \(possible). Convert the tensors, or use the CPU."
    case .typeOfCaches(let type):
      "\(type) is a type for the keys and values of a cache; attention itself is computed in f32, f16 or bf16."
    case .unsupported(let sentence):
      sentence
    case .cacheFull(let needed, let free, let pageSize):
      "The cache is full: \(needed) more \(needed == 1 ? "page" : "pages") of \(pageSize) keys \(needed == 1 ? "is" : "are") "
        + "needed, \(free) \(free == 1 ? "is" : "are") free. Free a sequence, or make a larger cache."
    case .sequenceTooLong(let length, let limit):
      "The sequence would have \(length) keys; in this cache one can have \(limit). Make a cache with longer sequences."
    case .unknownSequence:
      "The sequence is not in the cache: it was freed, or belongs to another one."
    case .lengthOnDevice(let tensor, let length, let device, let limit):
      "\(tensor) is \(length); the \(device)'s kernels count to \(limit). Split the batch, or use the CPU."
    case .alignment(let tensor, let what, let bytes, let multiple):
      "The \(what) of \(tensor) is \(bytes) bytes; on the GPU it must be a multiple of \(multiple). Copy the tensor into "
        + "memory that is."
    case .stride(let tensor, let axis, let elements):
      "The \(axis) stride of \(tensor) is \(elements) elements, which leads out of all memory; check it."
    case .overlappingOutput(let tensor, let strides):
      "The strides of \(tensor) (batch \(strides.batch), head \(strides.heads), token \(strides.length) elements) let its "
        + "elements share memory; give each memory of its own."
    case .sharedMemory(let written, let read):
      "\(written) and \(read) share memory, and the first is written while the other is read; give each memory of its own."
    case .memory(let what, let byteCount):
      "\(what) needs \(byteCount / 1_000_000 + 1) MB of memory, which this machine does not have; make it smaller."
    case .elementCount(let tensor, let needed, let given):
      "\(tensor) has \(needed); \(given) were given."
    case .slice(let axis, let range, let extent):
      "The slice \(range) of the axis \(axis) leads out of the tensor, which has \(extent) there; give a range within 0..<\(extent)."
    case .tiling(let tiling, let reason):
      "The tiling (\(tiling)) \(reason)."
    case .deviceUnavailable(let device, let reason):
      "The \(device) cannot be used: \(reason)"
    case .deviceFailed(let device, _, let reason):
      "The \(device) failed: \(reason)"
    }
  }
}
