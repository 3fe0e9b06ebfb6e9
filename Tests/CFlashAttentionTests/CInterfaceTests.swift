import CFlashAttention
import FlashAttention
import FlashAttentionHeader
import Testing

/// The library as C sees it, on the CPU: results beside the Swift API's, sentences for what cannot be, and no trap
/// whatever the parameters.
@Suite struct CInterfaceTests {
  private func number(_ i: Int) -> Float { Float(i * 2_654_435_761 % 1009) / 504 - 1 }

  /// `[B, N, H, D]` contiguous.
  private func tensor(_ base: UnsafeMutablePointer<Float>?, _ length: Int, _ heads: Int, _ dimension: Int) -> fa_tensor
  {
    fa_tensor(
      data: base.map { UnsafeMutableRawPointer($0) }, batch_stride: Int64(length * heads * dimension),
      token_stride: Int64(heads * dimension), head_stride: Int64(dimension))
  }

  private var forward: fa_forward_params {
    var p = fa_forward_params()
    p.size = MemoryLayout<fa_forward_params>.size
    (p.batch, p.queries, p.keys, p.query_heads, p.key_value_heads, p.dimension) = (2, 5, 9, 4, 2, 16)
    p.scores.mask = Int32(FA_MASK_CAUSAL)
    return p
  }

  private var lastError: String { String(cString: fa_last_error()) }

  @Test func forwardIsThatOfSwift() throws {
    var p = forward
    var (q, k, v) = (
      (0..<2 * 5 * 4 * 16).map(number), (0..<2 * 9 * 2 * 16).map { number($0 + 1) },
      (0..<2 * 9 * 2 * 16).map { number($0 + 2) }
    )
    var (o, lse) = ([Float](repeating: .nan, count: q.count), [Float](repeating: .nan, count: 40))
    let code = q.withUnsafeMutableBufferPointer { q in
      k.withUnsafeMutableBufferPointer { k in
        v.withUnsafeMutableBufferPointer { v in
          o.withUnsafeMutableBufferPointer { o in
            lse.withUnsafeMutableBufferPointer { lse in
              (p.q, p.k, p.v) = (
                tensor(q.baseAddress, 5, 4, 16), tensor(k.baseAddress, 9, 2, 16), tensor(v.baseAddress, 9, 2, 16)
              )
              (p.o, p.log_sum_exp) = (tensor(o.baseAddress, 5, 4, 16), lse.baseAddress)
              return fa_forward(&p)
            }
          }
        }
      }
    }
    #expect(code == FA_OK && lastError == "")
    func shape(_ length: Int, _ heads: Int) -> TensorShape {
      TensorShape(batch: 2, heads: heads, length: length, dimension: 16)
    }
    let expected = try attentionWithLogSumExp(
      queries: try Tensor(shape: shape(5, 4), layout: .bnhd, scalars: q),
      keys: try Tensor(shape: shape(9, 2), layout: .bnhd, scalars: k),
      values: try Tensor(shape: shape(9, 2), layout: .bnhd, scalars: v), mask: .causal, device: .cpu)
    #expect(o == expected.output.floats && lse == expected.logSumExp)
    let isRight = try q.withUnsafeMutableBufferPointer { q in
      try k.withUnsafeMutableBufferPointer { k in
        try v.withUnsafeMutableBufferPointer { v in
          try o.withUnsafeMutableBufferPointer { o in
            (p.q, p.k, p.v) = (
              tensor(q.baseAddress, 5, 4, 16), tensor(k.baseAddress, 9, 2, 16), tensor(v.baseAddress, 9, 2, 16)
            )
            (p.o, p.log_sum_exp) = (tensor(o.baseAddress, 5, 4, 16), nil)
            func expected(_ sinks: [Float]?, _ ranges: KeyRanges?) throws -> Tensor {
              try attention(
                queries: try Tensor(shape: shape(5, 4), layout: .bnhd, scalars: Array(q)),
                keys: try Tensor(shape: shape(9, 2), layout: .bnhd, scalars: Array(k)),
                values: try Tensor(shape: shape(9, 2), layout: .bnhd, scalars: Array(v)), mask: .causal, sinks: sinks,
                ranges: ranges, device: .cpu)
            }
            let hasSinks = try hasSinksOfSwift(&p, o) { try expected($0, nil) }
            (p.scores.sinks, p.scores.sink_type) = (nil, 0)
            return try hasSinks && hasRangesOfSwift(&p, o) { try expected(nil, $0) }
          }
        }
      }
    }
    #expect(isRight)
    p.reserved = 1
    #expect(fa_forward(&p) == FA_INVALID && lastError == "reserved is 1; it must be 0.")
    p.reserved = 0
    var combine = fa_combine_params()
    (combine.size, combine.reserved_2) = (MemoryLayout<fa_combine_params>.size, 7)
    #expect(fa_combine(&combine) == FA_INVALID && lastError == "reserved_2 is 7; it must be 0.")
    var text = [CChar](repeating: 1, count: 40)
    #expect(fa_forward_describe(&p, &text, 40) == FA_OK)
    #expect(text.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }.hasPrefix("CPU, ") && text[39] == 0)
    #expect(fa_forward_prepare(&p) == FA_OK)
  }

  /// Sinks of each type that they have, and words for those that are none.
  private func hasSinksOfSwift(
    _ p: inout fa_forward_params, _ o: UnsafeMutableBufferPointer<Float>, _ expected: ([Float]) throws -> Tensor
  ) throws -> Bool {
    let sinks: [Float] = [0.5, -.infinity, 3, 1000]
    let right = try expected(sinks).floats
    let (halves, brains) = (sinks.map { Float16($0).bitPattern }, sinks.map { BFloat16($0).bitPattern })
    var all = true
    for (type, bytes) in [
      (FA_F32, sinks.withUnsafeBytes { Array($0) }), (FA_F16, halves.withUnsafeBytes { Array($0) }),
      (FA_BF16, brains.withUnsafeBytes { Array($0) }),
    ] {
      bytes.withUnsafeBytes {
        (p.scores.sinks, p.scores.sink_type) = ($0.baseAddress, Int32(type))
        all = all && fa_forward(&p) == FA_OK
      }
      all = all && zip(o, right).allSatisfy { ($0 - $1).magnitude < 1e-6 }
    }
    sinks.withUnsafeBytes {
      (p.scores.sinks, p.scores.sink_type) = ($0.baseAddress, Int32(FA_E4M3))
      all = all && fa_forward(&p) == FA_INVALID && lastError.hasPrefix("Sinks are FA_E4M3")
    }
    p.scores.sinks = nil
    return all && fa_forward(&p) == FA_INVALID && lastError.hasPrefix("sink_type is given and sinks is NULL")
  }

  /// Ranges of each kind, and words for what does not belong to them.
  private func hasRangesOfSwift(
    _ p: inout fa_forward_params, _ o: UnsafeMutableBufferPointer<Float>, _ expected: (KeyRanges) throws -> Tensor
  ) throws -> Bool {
    let given = (0..<2).map { b in (0..<5).map { [b..<$0 + 2, 4..<5 + $0] } }
    let numbers = given.joined().joined().flatMap { [Int32($0.lowerBound), Int32($0.upperBound)] }
    var all = true
    func isRight(_ ranges: KeyRanges) throws {
      let right = try expected(ranges).floats
      all = all && fa_forward(&p) == FA_OK && zip(o, right).allSatisfy { ($0 - $1).magnitude < 1e-6 }
    }
    func isRefused(_ words: String) { all = all && fa_forward(&p) == FA_INVALID && lastError.hasPrefix(words) }
    try numbers.withUnsafeBufferPointer {
      (p.scores.ranges, p.scores.key_ranges, p.scores.ranges_of_query) = (Int32(FA_RANGES_GIVEN), $0.baseAddress, 2)
      try isRight(.given(given))
      p.scores.ranges_are_shared = 1
      try isRight(.given(given[0]))
      p.scores.ranges_are_shared = 2
      isRefused("ranges_are_shared is 2; it must be 0 or 1.")
      (p.scores.ranges_are_shared, p.scores.ranges_of_query) = (0, 3)
      isRefused("There are 3 ranges of keys for a query; give 1 or 2.")
      (p.scores.ranges, p.scores.ranges_of_query) = (Int32(FA_RANGES_NONE), 0)
      isRefused("key_ranges is given, and ranges is neither FA_RANGES_GIVEN nor FA_RANGES_PREFIX.")
    }
    p.scores.key_ranges = nil
    try [Int32(3), 100].withUnsafeBufferPointer {
      (p.scores.ranges, p.scores.key_ranges) = (Int32(FA_RANGES_PREFIX), $0.baseAddress)
      try isRight(.prefix([3, 100]))
      p.scores.ranges_of_query = 1
      isRefused("ranges_of_query or ranges_are_shared is given, and ranges is not FA_RANGES_GIVEN.")
    }
    (p.scores.key_ranges, p.scores.ranges_of_query) = (nil, 0)
    isRefused("key_ranges is NULL; FA_RANGES_GIVEN and FA_RANGES_PREFIX need it.")
    p.scores.first_keys = 2
    isRefused("key_ranges is NULL")
    p.scores.ranges = 0
    isRefused("first_keys is given, and ranges is not FA_RANGES_FIRST_KEYS.")
    (p.scores.ranges, p.scores.window_left) = (Int32(FA_RANGES_FIRST_KEYS), 1)
    try isRight(.firstKeys(2))
    p.scores.ranges = 9
    isRefused("ranges is 9; it must be FA_RANGES_NONE,")
    (p.scores.ranges, p.scores.first_keys) = (0, 0)
    return all
  }

  /// A cache, to which keys are appended; then the same over the keys without a cache.
  @Test func sequencesAreThoseOfSwift() throws {
    var p = fa_sequences_params()
    p.size = MemoryLayout<fa_sequences_params>.size
    (p.batch, p.queries, p.query_heads, p.key_value_heads, p.dimension) = (2, 2, 4, 2, 16)
    (p.cache_batch, p.cache_tokens, p.new_keys) = (2, 12, 2)
    p.scores.mask = Int32(FA_MASK_CAUSAL)
    var (q, k, v) = (
      (0..<2 * 2 * 4 * 16).map(number), (0..<2 * 12 * 2 * 16).map { number($0 + 1) },
      (0..<2 * 12 * 2 * 16).map { number($0 + 2) }
    )
    var (newK, newV) = ((0..<2 * 2 * 2 * 16).map { number($0 + 3) }, (0..<2 * 2 * 2 * 16).map { number($0 + 4) })
    var (o, lengths) = ([Float](repeating: .nan, count: q.count), [Int32(10), 3])
    let code = q.withUnsafeMutableBufferPointer { q in
      k.withUnsafeMutableBufferPointer { k in
        v.withUnsafeMutableBufferPointer { v in
          newK.withUnsafeMutableBufferPointer { newK in
            newV.withUnsafeMutableBufferPointer { newV in
              o.withUnsafeMutableBufferPointer { o in
                lengths.withUnsafeMutableBufferPointer { lengths in
                  (p.q, p.o) = (tensor(q.baseAddress, 2, 4, 16), tensor(o.baseAddress, 2, 4, 16))
                  (p.k, p.v) = (tensor(k.baseAddress, 12, 2, 16), tensor(v.baseAddress, 12, 2, 16))
                  (p.new_k, p.new_v) = (tensor(newK.baseAddress, 2, 2, 16), tensor(newV.baseAddress, 2, 2, 16))
                  p.lengths = UnsafePointer(lengths.baseAddress)
                  return fa_sequences(&p)
                }
              }
            }
          }
        }
      }
    }
    #expect(code == FA_OK, "\(lastError)")
    for (b, length) in [(0, 12), (1, 5)] {
      #expect(Array(k[(b * 12 + length - 2) * 32..<(b * 12 + length) * 32]) == Array(newK[b * 64..<(b + 1) * 64]))
      func cut(_ values: [Float], _ first: Int, _ length: Int, _ heads: Int) -> Tensor {
        try! Tensor(
          shape: TensorShape(batch: 1, heads: heads, length: length, dimension: 16), layout: .bnhd,
          scalars: Array(values[first..<first + length * heads * 16]))
      }
      let expected = try attention(
        queries: cut(q, b * 128, 2, 4), keys: cut(k, b * 12 * 32, length, 2), values: cut(v, b * 12 * 32, length, 2),
        mask: .causal, device: .cpu)
      #expect(Array(o[b * 128..<(b + 1) * 128]) == expected.floats)
    }
    var bytes = 7
    #expect(fa_sequences_workspace(&p, &bytes) == FA_OK && bytes == 0)
    var isShared: Int32 = 7
    bytes = 7
    #expect(fa_sequences_counters(&p, &bytes, &isShared) == FA_OK && bytes == 0 && isShared == 1)
    #expect(fa_sequences_counters(&p, &bytes, nil) == FA_OK)
    #expect(fa_sequences_counters(&p, nil, &isShared) == FA_INVALID)
    p.workspace_size = 4096
    #expect(fa_sequences(&p) == FA_INVALID)
    #expect(lastError == "workspace_size is 4096 and workspace is NULL; give its address, or a size of 0.")
    (p.workspace_size, p.counters_size) = (0, 1)
    #expect(fa_sequences(&p) == FA_INVALID)
    #expect(lastError == "counters_size is 1 and counters is NULL; give its address, or a size of 0.")
  }

  /// Parts that are left apart are what `fa_combine` makes the result of.
  @Test func partsOfSequencesCombine() {
    var p = fa_sequences_params()
    p.size = MemoryLayout<fa_sequences_params>.size
    (p.batch, p.queries, p.query_heads, p.key_value_heads, p.dimension) = (2, 3, 4, 2, 16)
    (p.cache_batch, p.cache_tokens) = (2, 12)
    p.scores.mask = Int32(FA_MASK_CAUSAL)
    let (rows, count) = (2 * 3 * 4, 2 * 3 * 4 * 16)
    var (q, k) = ((0..<count).map(number), (0..<2 * 12 * 2 * 16).map { number($0 + 1) })
    var (whole, combined) = ([Float](repeating: .nan, count: count), [Float](repeating: .nan, count: count))
    // ceil(12 / 5) parts.
    var (parts, lse) = ([Float](repeating: .nan, count: 3 * count), [Float](repeating: .nan, count: 3 * rows))
    var lengths = [Int32(12), 7]
    func run(_ o: inout [Float], _ statistics: UnsafeMutablePointer<Float>?) -> fa_status {
      q.withUnsafeMutableBufferPointer { q in
        k.withUnsafeMutableBufferPointer { k in
          o.withUnsafeMutableBufferPointer { o in
            lengths.withUnsafeMutableBufferPointer { lengths in
              (p.q, p.o) = (tensor(q.baseAddress, 3, 4, 16), tensor(o.baseAddress, 3, 4, 16))
              (p.k, p.v) = (tensor(k.baseAddress, 12, 2, 16), tensor(k.baseAddress, 12, 2, 16))
              (p.lengths, p.log_sum_exp) = (UnsafePointer(lengths.baseAddress), statistics)
              return fa_sequences(&p)
            }
          }
        }
      }
    }
    #expect(run(&whole, nil) == FA_OK, "\(lastError)")
    (p.leaves_parts, p.keys_per_split) = (1, 5)
    let left = lse.withUnsafeMutableBufferPointer { run(&parts, $0.baseAddress) }
    #expect(left == FA_OK, "\(lastError)")
    var c = fa_combine_params()
    c.size = MemoryLayout<fa_combine_params>.size
    (c.parts, c.batch, c.queries, c.heads, c.dimension) = (3, 2, 3, 4, 16)
    let code = parts.withUnsafeMutableBufferPointer { parts in
      lse.withUnsafeMutableBufferPointer { lse in
        combined.withUnsafeMutableBufferPointer { o in
          (c.partials, c.part_stride) = (tensor(parts.baseAddress, 3, 4, 16), Int64(count))
          (c.log_sum_exps, c.o) = (UnsafePointer(lse.baseAddress), tensor(o.baseAddress, 3, 4, 16))
          return fa_combine(&c)
        }
      }
    }
    #expect(code == FA_OK, "\(lastError)")
    #expect(zip(combined, whole).allSatisfy { abs($0 - $1) < 1e-6 })
    p.keys_per_split = 0
    #expect(fa_sequences(&p) == FA_INVALID)
    #expect(
      lastError
        == "With leaves_parts, keys_per_split says how long the parts are, and queries are not packed: set keys_per_split, "
        + "and leave out query_starts.")
    p.leaves_parts = 2
    #expect(fa_sequences(&p) == FA_INVALID && lastError == "leaves_parts is 2; it must be 0 or 1.")
  }

  @Test func combineIsThatOfSwift() {
    var p = fa_combine_params()
    p.size = MemoryLayout<fa_combine_params>.size
    (p.parts, p.batch, p.queries, p.heads, p.dimension) = (2, 1, 1, 1, 4)
    var (parts, lse): ([Float], [Float]) = ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0])
    var (o, own) = ([Float](repeating: 0, count: 4), Float(0))
    let code = parts.withUnsafeMutableBufferPointer { parts in
      lse.withUnsafeMutableBufferPointer { lse in
        o.withUnsafeMutableBufferPointer { o in
          withUnsafeMutablePointer(to: &own) { own in
            (p.partials, p.part_stride) = (tensor(parts.baseAddress, 1, 1, 4), 4)
            (p.log_sum_exps, p.o, p.log_sum_exp) = (UnsafePointer(lse.baseAddress), tensor(o.baseAddress, 1, 1, 4), own)
            return fa_combine(&p)
          }
        }
      }
    }
    #expect(code == FA_OK && o == [3, 4, 5, 6] && abs(own - 0.6931472) < 1e-6)
  }

  @Test func refusesInSentences() {
    var p = forward
    #expect(fa_forward(nil) == FA_INVALID && lastError == "The parameters are NULL; give a struct.")
    #expect(
      fa_forward(&p) == FA_INVALID
        && lastError == "The address of queries is NULL, and it has elements; give its memory.")
    p.size = 3
    #expect(
      fa_forward(&p) == FA_INVALID
        && lastError
          == "The parameters' size is 3; set it to the struct's sizeof (\(MemoryLayout<fa_forward_params>.size) in this "
          + "version)."
    )
    p = forward
    p.type = 9
    #expect(
      fa_forward(&p) == FA_INVALID
        && lastError == "The type is 9; it must be FA_F32, FA_F16, FA_BF16 or FA_E4M3.")
    p = forward
    p.scores.mask = -1
    #expect(
      fa_forward(&p) == FA_INVALID
        && lastError == "The mask is -1; it must be FA_MASK_NONE, FA_MASK_CAUSAL or FA_MASK_WINDOW.")
    p = forward
    p.key_value_heads = 3
    #expect(
      fa_forward(&p) == FA_INVALID
        && lastError
          == "4 query heads cannot share 3 key/value heads evenly; the query heads must be a multiple of the key/value heads."
    )
    if fa_gpu_check(0) != FA_OK {
      #expect(lastError.hasPrefix("The GPU cannot be used: "))
      p = forward
      p.device = Int32(FA_GPU)
      p.type = Int32(FA_F16)
      #expect(fa_forward(&p) == FA_UNAVAILABLE && lastError.hasPrefix("The GPU cannot be used: "))
    }
    #expect(fa_gpu_check(-1) == FA_UNAVAILABLE)
    var counters: UnsafeMutableRawPointer?
    #expect(fa_counters(-1, nil, 64, &counters) == FA_UNAVAILABLE && counters == nil)
    #expect(fa_counters(-1, nil, -64, &counters) == FA_INVALID)
    #expect(lastError == "The counters have -64 bytes; give a size of 0 or more.")
    #expect(fa_counters(-1, nil, 64, nil) == FA_INVALID)
    #expect(String(cString: fa_version()) == "1.0.0")
  }

  /// A caller that knows fields which this library does not: harmless while they are zero.
  @Test func largerStructsAreTakenWhileTheirTailIsZero() {
    struct Later {
      var known = fa_forward_params()
      var unknown = (Int64(0), Int64(0))
    }
    var later = Later()
    later.known = forward
    later.known.batch = 0
    later.known.size = MemoryLayout<Later>.size
    func call() -> fa_status {
      withUnsafePointer(to: &later) {
        fa_forward(UnsafeRawPointer($0).assumingMemoryBound(to: fa_forward_params.self))
      }
    }
    #expect(call() == FA_OK, "\(lastError)")
    later.unknown.1 = 1
    #expect(call() == FA_INVALID && lastError.contains("does not know"))
  }

  /// The address stays, so that it may be taken before the call that fails.
  @Test func theErrorStaysInItsPlace() {
    let before = fa_last_error()
    #expect(fa_forward(nil) == FA_INVALID && fa_last_error() == before)
    #expect(before.map { String(cString: $0) } == "The parameters are NULL; give a struct.")
    #expect(fa_gpu_check(-1) == FA_UNAVAILABLE && fa_last_error() == before)
    var bytes = 0
    var p = fa_sequences_params()
    p.size = MemoryLayout<fa_sequences_params>.size
    (p.queries, p.query_heads, p.key_value_heads, p.dimension, p.cache_batch) = (1, 1, 1, 8, 1)
    #expect(fa_sequences_workspace(&p, &bytes) == FA_OK && lastError == "" && fa_last_error() == before)
  }

  /// Outputs whose elements would overwrite each other, on the CPU too.
  @Test func refusesOutputsThatOverlap() {
    var p = forward
    var (x, o) = ([Float](repeating: 0, count: 2 * 9 * 4 * 16), [Float](repeating: 0, count: 2 * 9 * 4 * 16))
    x.withUnsafeMutableBufferPointer { x in
      o.withUnsafeMutableBufferPointer { o in
        (p.q, p.k, p.v) = (
          tensor(x.baseAddress, 5, 4, 16), tensor(x.baseAddress, 9, 2, 16), tensor(x.baseAddress, 9, 2, 16)
        )
        for change: (inout fa_tensor) -> Void in [
          { $0.head_stride = 0 }, { $0.token_stride = 16 }, { $0.batch_stride = 16 }, { $0.token_stride = 0 },
        ] {
          p.o = tensor(o.baseAddress, 5, 4, 16)
          #expect(fa_forward(&p) == FA_OK, "\(lastError)")
          change(&p.o)
          #expect(
            fa_forward(&p) == FA_INVALID && lastError.hasPrefix("The strides of output (")
              && lastError.hasSuffix("let its elements share memory; give each memory of its own."), "\(lastError)")
        }
      }
    }
  }

  /// Nasty numbers in every field, without memory: an error or nothing to do, and never a trap.
  @Test(arguments: 0..<8) func nothingTraps(seed: UInt64) {
    var state = seed &* 0x9e37_79b9_7f4a_7c15 | 1
    func draw() -> UInt64 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return state >> 11
    }
    let nasty: [Int64] = [0, 1, 2, 3, 8, 16, 64, -1, -7, 1 << 31, 1 << 33, 1 << 62, .max, .min, 4096, 24]
    func fill<P: BitwiseCopyable>(_ p: inout P, keep: [Int]) {
      withUnsafeMutableBytes(of: &p) { bytes in
        for offset in stride(from: 8, to: bytes.count, by: 8) {
          if keep.contains(offset) { bytes.storeBytes(of: 0, toByteOffset: offset, as: Int64.self); continue }
          if draw() % 3 == 0 { continue }
          // Two small numbers, or one large one.
          let value = draw() % 4 == 0 ? nasty[Int(draw()) % nasty.count] : Int64(draw() % 5) | Int64(draw() % 3) << 32
          bytes.storeBytes(of: value, toByteOffset: offset, as: Int64.self)
        }
      }
    }
    /// Offsets of pointers, which must be NULL here.
    func pointers<P>(_: P.Type, _ paths: [PartialKeyPath<P>], _ tensors: [PartialKeyPath<P>]) -> [Int] {
      paths.map { MemoryLayout<P>.offset(of: $0)! } + tensors.map { MemoryLayout<P>.offset(of: $0)! }
    }
    for _ in 0..<2000 {
      var f = fa_forward_params()
      fill(
        &f,
        keep: pointers(
          fa_forward_params.self, [\.log_sum_exp, \.stream, \.scores.sinks, \.scores.sink_type, \.scores.key_ranges],
          [\.q, \.k, \.v, \.o]))
      f.size = MemoryLayout<fa_forward_params>.size
      #expect((0...2).contains(fa_forward(&f)))
      var s = fa_sequences_params()
      fill(
        &s,
        keep: pointers(
          fa_sequences_params.self,
          [
            \.log_sum_exp, \.lengths, \.batch_index, \.left_padding, \.page_table, \.query_starts, \.query_counts,
            \.key_starts, \.new_key_starts, \.positions, \.query_scales, \.key_scales, \.value_scales, \.cosines,
            \.sines,
            \.workspace, \.stream, \.counters, \.scores.sinks, \.scores.sink_type, \.scores.key_ranges,
          ], [\.q, \.k, \.v, \.o, \.new_k, \.new_v]))
      s.size = MemoryLayout<fa_sequences_params>.size
      #expect((0...2).contains(fa_sequences(&s)))
      var c = fa_combine_params()
      fill(
        &c,
        keep: pointers(
          fa_combine_params.self, [\.log_sum_exps, \.log_sum_exp, \.stream, \.sinks, \.sink_type], [\.partials, \.o]))
      c.size = MemoryLayout<fa_combine_params>.size
      #expect((0...2).contains(fa_combine(&c)))
    }
  }

  // MARK: - Gradients

  /// Those of the forward pass above, whole, and packed as two sequences of the same lengths.
  @Test func gradientsAreThoseOfSwift() throws {
    func values(_ heads: Int, _ length: Int, _ shift: Int) throws -> Tensor {
      try Tensor(
        shape: TensorShape(batch: 2, heads: heads, length: length, dimension: 16), scalarType: .f32, layout: .bnhd
      ) { b, h, n, d in number(((b * length + n) * heads + h) * 16 + d + shift) }
    }
    let (q, k, v, given) = (
      try values(4, 5, 0), try values(2, 9, 1), try values(2, 9, 2), try values(4, 5, 3)
    )
    let result = try attentionWithLogSumExp(queries: q, keys: k, values: v, mask: .causal, device: .cpu)
    let expected = try attentionGradients(
      of: result, queries: q, keys: k, values: v, outputGradient: given, mask: .causal, device: .cpu)
    func pointer(_ tensor: Tensor) -> UnsafeMutableRawPointer {
      tensor.withBytes { UnsafeMutableRawPointer(mutating: $0.baseAddress!) }
    }
    for isPacked in [false, true] {
      var p = fa_backward_params()
      p.size = MemoryLayout<fa_backward_params>.size
      (p.batch, p.queries, p.keys, p.query_heads, p.key_value_heads, p.dimension) = (2, 5, 9, 4, 2, 16)
      p.scores.mask = Int32(FA_MASK_CAUSAL)
      var statistics = result.logSumExp
      if isPacked {
        // [H, total] of packed queries.
        for row in 0..<40 {
          let (head, query) = (row / 10, row % 10)
          statistics[row] = result.logSumExp[(query / 5 * 4 + head) * 5 + query % 5]
        }
      }
      let (queryStarts, keyStarts) = ([0, 5, 10] as [Int32], [0, 9, 18] as [Int32])
      let made = try [(4, 5), (2, 9), (2, 9)].map { heads, length in
        try Tensor(
          shape: TensorShape(batch: 2, heads: heads, length: length, dimension: 16), scalarType: .f32, layout: .bnhd
        ) { _, _, _, _ in .nan }
      }
      func place(_ tensor: Tensor) -> fa_tensor {
        fa_tensor(
          data: pointer(tensor), batch_stride: Int64(tensor.shape.length * tensor.shape.heads * 16),
          token_stride: Int64(tensor.shape.heads * 16), head_stride: 16)
      }
      (p.q, p.k, p.v, p.o, p.d_o) = (place(q), place(k), place(v), place(result.output), place(given))
      (p.dq, p.dk, p.dv) = (place(made[0]), place(made[1]), place(made[2]))
      let code = statistics.withUnsafeBufferPointer { statistics in
        queryStarts.withUnsafeBufferPointer { queryStarts in
          keyStarts.withUnsafeBufferPointer { keyStarts in
            p.log_sum_exp = statistics.baseAddress
            if isPacked {
              (p.query_starts, p.key_starts) = (queryStarts.baseAddress, keyStarts.baseAddress)
              (p.total_queries, p.total_keys) = (10, 18)
            }
            return fa_backward(&p)
          }
        }
      }
      #expect(code == FA_OK, "\(lastError)")
      for (own, other) in zip(made, [expected.queries, expected.keys, expected.values]) {
        for b in 0..<2 {
          for h in 0..<own.shape.heads {
            for n in 0..<own.shape.length {
              for d in 0..<16 { #expect((own[b, h, n, d] - other[b, h, n, d]).magnitude < 1e-5) }
            }
          }
        }
      }
      var size = 1
      #expect(fa_backward_workspace(&p, &size) == FA_OK && size == 0)
    }
  }

  @Test func whatGradientsCannotBeIsASentence() {
    var p = fa_backward_params()
    p.size = MemoryLayout<fa_backward_params>.size
    (p.batch, p.queries, p.keys, p.query_heads, p.key_value_heads, p.dimension) = (2, 5, 9, 4, 2, 16)
    #expect(fa_backward(nil) == FA_INVALID && !lastError.isEmpty)
    p.workspace_size = 16
    #expect(fa_backward(&p) == FA_INVALID)
    #expect(lastError == "workspace_size is 16 and workspace is NULL; give its address, or a size of 0.")
    p.workspace_size = 0
    #expect(fa_backward(&p) == FA_INVALID)
    #expect(lastError == "log_sum_exp is NULL; give what the forward pass wrote.")
    p.order = 2
    #expect(
      fa_backward_prepare(&p) == FA_INVALID && lastError == "order is 2; it must be FA_ORDER_FIXED or FA_ORDER_ANY.")
    p.order = 1
    #expect(fa_backward_prepare(&p) == FA_OK)
    p.order = 0
    let starts: [Int32] = [0, 5, 10]
    starts.withUnsafeBufferPointer { starts in
      p.query_starts = starts.baseAddress
      #expect(fa_backward(&p) == FA_INVALID)
      #expect(lastError == "Sequences are packed with both query_starts and key_starts; give both, or neither.")
      (p.query_starts, p.query_counts) = (nil, starts.baseAddress)
      #expect(fa_backward(&p) == FA_INVALID)
      #expect(
        lastError == "query_counts and key_counts are of packed sequences; give query_starts and key_starts with them.")
    }
    p.query_counts = nil
    #expect(fa_backward_workspace(&p, nil) == FA_INVALID)
    #expect(lastError == "There is no place for the number of bytes; give its address.")
    p.total_keys = 3
    #expect(fa_backward(&p) == FA_INVALID)
    #expect(
      lastError == "total_queries and total_keys are of packed sequences; give query_starts and key_starts with them.")
    p.total_keys = 0
    p.type = Int32(FA_E4M3)
    #expect(fa_backward(&p) == FA_INVALID && lastError.contains("e4m3"), "\(lastError)")
  }
}
