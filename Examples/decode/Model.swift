import FlashAttention

/// A language model of bytes in two layers of attention, whose weights are reasoned and not learnt.
///
/// - Layer 1 has two heads that look one and two tokens back: queries and keys are one and the same vector, turned by a rotary
///   embedding, and a query by one or two positions less. What they bring is the vectors of those tokens.
/// - Layer 2 asks "where did my last two tokens stand before?": queries are the vectors of this token and the one before it,
///   keys those of the two before each. What it brings is the vectors of the tokens that followed.
///
/// Such pairs of heads are found in trained models, too (Olsson et al., "In-context Learning and Induction Heads", 2022).
struct Model {
  static let pageSize = 16
  /// Elements of a token's vector; tokens are bytes.
  private static let width = 128
  /// The most tokens of a conversation.
  private static let positions = 4096
  private static let scalarType = ScalarType.f32

  /// A vector for each byte, of length 1, in random directions: nearly at right angles to each other.
  private let vectors: [[Float]]
  /// The angles by which pairs of elements turn from one position to the next.
  private let angles: [Double]
  private let rotary = RotaryEmbedding(dimension: width, isInterleaved: false, positions: positions)
  private let cosines, sines: Tensor
  private let layer1, layer2: KVCache

  /// A sequence in the cache of each layer.
  struct Conversation {
    fileprivate let layer1, layer2: KVCache.Sequence
  }

  init() throws {
    var random = SplitMix(seed: 1)
    let element = 1 / Float(Self.width).squareRoot()
    vectors = (0..<256).map { _ in (0..<Self.width).map { _ in random.next() % 2 == 0 ? element : -element } }
    let angles = (0..<Self.width / 2).map { _ in Double(random.next() >> 11) * 0x1p-53 * .pi }
    self.angles = angles
    let table = TensorShape(batch: 1, heads: 1, length: Self.positions, dimension: Self.width / 2)
    cosines = try Tensor(shape: table, scalarType: Self.scalarType) { _, _, position, pair in
      Float(Turn(Double(position) * angles[pair]).cosine)
    }
    sines = try Tensor(shape: table, scalarType: Self.scalarType) { _, _, position, pair in
      Float(Turn(Double(position) * angles[pair]).sine)
    }
    // Values of both layers are tokens' vectors; keys of layer 2 are two of them.
    layer1 = try KVCache(
      .paged(pages: 256, pageSize: Self.pageSize), keyValueHeads: 1, dimension: Self.width, scalarType: Self.scalarType)
    layer2 = try KVCache(
      .paged(pages: 256, pageSize: Self.pageSize), keyValueHeads: 1, dimension: 2 * Self.width,
      valueDimension: Self.width, scalarType: Self.scalarType)
  }

  // MARK: - Conversations

  func makeConversation() throws -> Conversation {
    Conversation(layer1: layer1.makeSequence(), layer2: layer2.makeSequence())
  }

  func fork(_ conversation: Conversation) throws -> Conversation {
    Conversation(layer1: try layer1.fork(conversation.layer1), layer2: try layer2.fork(conversation.layer2))
  }

  func free(_ conversation: Conversation) throws {
    try layer1.free(conversation.layer1)
    try layer2.free(conversation.layer2)
  }

  /// Pages of a layer that nobody has.
  var freePages: Int { layer1.freePages }

  // MARK: - The layers

  /// Appends tokens to conversations, to each as many as it likes.
  /// - Returns: the logits of what follows each.
  func append(_ tokens: [[UInt8]], to conversations: [Conversation]) throws -> [[Float]] {
    let counts = tokens.map(\.count)
    // [1, heads, tokens of all, width]: a conversation behind the other.
    let own = try vectors(of: tokens.flatMap { $0 })
    let before = try layer1.attend(
      queries: try queriesOfLayer1(count: own.shape.length), keys: try keysOfLayer1(count: own.shape.length),
      values: own, sequences: conversations.map(\.layer1), counts: counts, scale: Self.sharpness,
      rotary: (rotary, cosines: cosines, sines: sines)
    ).output
    let (queries, keys) = try inputsOfLayer2(own, before)
    let followers = try layer2.attend(
      queries: queries, keys: keys, values: own, sequences: conversations.map(\.layer2), counts: counts,
      scale: Self.sharpness
    ).output
    var end = 0
    return try counts.map { count in
      end += count
      return try logits(followers.slice(length: end - 1..<end))
    }
  }

  /// The logits of what follows a text, computed from all of its tokens at once, without a cache.
  func logits(ofWhole text: [UInt8]) throws -> [Float] {
    let own = try vectors(of: text)
    // Queries and keys turned by hand, as the cache does it.
    func turned(_ tensor: Tensor) throws -> Tensor {
      let half = Self.width / 2
      return try Tensor(shape: tensor.shape, scalarType: Self.scalarType) { b, h, n, d in
        let (cosine, sine) = (cosines[0, 0, n, d % half], sines[0, 0, n, d % half])
        let (x, y) = (tensor[b, h, n, d % half], tensor[b, h, n, d % half + half])
        return d < half ? x * cosine - y * sine : x * sine + y * cosine
      }
    }
    let before = try attention(
      queries: try turned(queriesOfLayer1(count: text.count)), keys: try turned(keysOfLayer1(count: text.count)),
      values: own, mask: .causal, scale: Self.sharpness)
    let (queries, keys) = try inputsOfLayer2(own, before)
    let followers = try attention(queries: queries, keys: keys, values: own, mask: .causal, scale: Self.sharpness)
    return try logits(followers.slice(length: text.count - 1..<text.count))
  }

  /// The factor of scores of vectors of length 1, by which the best of them has nearly all of the weight.
  private static let sharpness = 40.0

  private func vectors(of tokens: [UInt8]) throws -> Tensor {
    try Tensor(shape: shape(heads: 1, count: tokens.count, width: Self.width), scalarType: Self.scalarType) {
      _, _, n, d in
      vectors[Int(tokens[n])][d]
    }
  }

  /// Of a head that looks h + 1 tokens back: the key's vector, turned back as many positions.
  private func queriesOfLayer1(count: Int) throws -> Tensor {
    let length = (2 / Double(Self.width)).squareRoot()
    return try Tensor(shape: shape(heads: 2, count: count, width: Self.width), scalarType: Self.scalarType) {
      _, h, _, d in
      let turn = Turn(-Double(h + 1) * angles[d % (Self.width / 2)])
      return Float(length * (d < Self.width / 2 ? turn.cosine : turn.sine))
    }
  }

  private func keysOfLayer1(count: Int) throws -> Tensor {
    let length = Float((2 / Double(Self.width)).squareRoot())
    return try Tensor(shape: shape(heads: 1, count: count, width: Self.width), scalarType: Self.scalarType) {
      _, _, _, d in
      d < Self.width / 2 ? length : 0
    }
  }

  /// Queries: this token and the one before. Keys: the one before, and the one before that.
  private func inputsOfLayer2(_ own: Tensor, _ before: Tensor) throws -> (queries: Tensor, keys: Tensor) {
    let (last, lastButOne) = (try before.slice(heads: 0..<1), try before.slice(heads: 1..<2))
    return (
      try Tensor(concatenating: [own, last], along: .dimension),
      try Tensor(concatenating: [last, lastButOne], along: .dimension)
    )
  }

  /// How much each token's vector is in a vector.
  private func logits(_ vector: Tensor) -> [Float] {
    let vector = vector.floats
    return vectors.map { zip($0, vector).reduce(0) { $0 + $1.0 * $1.1 } }
  }

  private func shape(heads: Int, count: Int, width: Int) -> TensorShape {
    TensorShape(batch: 1, heads: heads, length: count, dimension: width)
  }
}
