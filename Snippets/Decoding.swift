// Prompts of different lengths in one call, then a token of each, over a cache that shares pages.
import FlashAttention

// snippet.random
// What a model's layer would make of its tokens: [1, heads, tokens, 128].
func random(_ heads: Int, _ tokens: Int) throws -> Tensor {
  var generator = SystemRandomNumberGenerator()
  return try Tensor(
    shape: TensorShape(batch: 1, heads: heads, length: tokens, dimension: 128), scalarType: .f32
  ) { _, _, _, _ in Float.random(in: -1...1, using: &generator) }
}
// snippet.end

// snippet.cache
// One layer: 512 pages of 16 keys, 8 key/value heads.
let cache = try KVCache(.paged(pages: 512, pageSize: 16), keyValueHeads: 8, dimension: 128, scalarType: .f32)
let chats = [cache.makeSequence(), cache.makeSequence(), cache.makeSequence()]
// snippet.end

// snippet.prefill
// The prompts of all one behind the other, [1, heads, 807, 128]; each sees its own keys alone.
let prompts = try cache.attend(
  queries: random(32, 807), keys: random(8, 807), values: random(8, 807), sequences: chats, counts: [700, 12, 95])
// snippet.end

// snippet.step
// A token of each: its key and value are appended, then its query sees all of its conversation.
let step = try cache.attend(
  queries: random(32, 3), keys: random(8, 3), values: random(8, 3), sequences: chats, counts: [1, 1, 1])
print(step.output.shape, try chats.map { try cache.length(of: $0) })
// snippet.end

// snippet.fork
// A fork takes no page before it differs; who is done gives pages back.
let other = try cache.fork(chats[0])
try cache.truncate(other, to: 640)
try cache.free(chats[1])
print(cache.freePages)
// snippet.end
