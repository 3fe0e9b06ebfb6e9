// Text, token by token, over caches: prompts of different lengths in one batch, sampling, and a fork of a conversation.
//
// The model is made by hand instead of trained (Model.swift): two layers of attention that find where the last two
// characters stood before and write what followed there. So the text goes on in the manner of its prompt, and whether
// caches, batches and forks are right can be seen.
//
//   swift run -c release --package-path Examples decode ["A PROMPT OF YOUR OWN." ...]
import FlashAttention

let given = Array(CommandLine.arguments.dropFirst())
if given.contains("") { fatalError("A prompt is empty; give it a character that something can follow.") }
let examples = [
  """
  the cat sat on the mat and the dog sat on the log and the frog sat on the bog. the cat saw the dog and the dog saw the \
  frog and the frog saw the cat. the cat and the dog and the frog sat on the mat on the log on the bog.
  """,
  "row, row, row your boat, gently down the stream, merrily, merrily, merrily, merrily, life is but a ",
  "to be or not to be, that is the question: whether tis nobler in the mind to suffer the slings and arrows, or ",
]
let prompts = given.isEmpty ? examples : given
let length = 60

let model = try Model()
var sampler = Sampler(seed: 7)

// The prompts of all conversations in one call of each layer, one behind the other, whatever their lengths are.
var conversations = try prompts.map { _ in try model.makeConversation() }
var texts = prompts.map { Array($0.utf8) }
var logits = try model.append(texts, to: conversations)

// The first conversation goes on twice: a fork shares its pages until the two differ.
conversations.append(try model.fork(conversations[0]))
texts.append(texts[0])
logits.append(logits[0])
let pages = model.freePages

for _ in 0..<length {
  let tokens = logits.map { sampler.sample($0, temperature: 0.05, top: 4) }
  for (index, token) in tokens.enumerated() { texts[index].append(token) }
  // A token of each conversation: one call of each layer for all.
  logits = try model.append(tokens.map { [$0] }, to: conversations)
}

for (index, text) in texts.enumerated() {
  let isFork = index == prompts.count
  let prompt = prompts[isFork ? 0 : index].utf8.count
  let (before, written) = (text[max(0, prompt - 30)..<prompt], text[prompt...])
  print(isFork ? "a fork of conversation 1:" : "conversation \(index + 1):")
  print("  ...\(String(decoding: before, as: UTF8.self))|\(String(decoding: written, as: UTF8.self))")
}
print(
  "\(pages - model.freePages) pages of \(Model.pageSize) keys a layer were taken for \(conversations.count * length) tokens"
)

// The same without any cache: all tokens of a text at once, by whole keys. The last logits must be the same.
for (text, logits) in zip(texts, logits) {
  let whole = try model.logits(ofWhole: text)
  precondition(zip(whole, logits).allSatisfy { abs($0 - $1) < 1e-4 }, "the cache gives other logits than whole keys")
}
print("without a cache, all at once: the same logits")

for conversation in conversations { try model.free(conversation) }
