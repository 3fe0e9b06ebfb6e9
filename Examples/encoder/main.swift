// Sentences to vectors: all-MiniLM-L6-v2, whole in Swift, on attention of this library.
//
//     Examples/encoder/fetch                                       the weights and the vocabulary, 83 MB, once
//     swift run -c release --package-path Examples encoder         three sentences, and how alike they are
//     swift run ... encoder FILE -o vectors.npy                    a line of the file each, of at most 256 word pieces
import FlashAttention
import Foundation
import TensorFiles

func quit(_ message: String) -> Never {
  print(message)
  exit(1)
}

let sentences: [String]
var arguments = Array(CommandLine.arguments.dropFirst())
var output: String?
if let option = arguments.firstIndex(of: "-o"), option + 1 < arguments.count {
  output = arguments[option + 1]
  arguments.removeSubrange(option...option + 1)
}
if arguments.count > 1 || arguments.first?.hasPrefix("-") == true {
  quit("usage: encoder [FILE] [-o VECTORS.npy]     a line of FILE, a sentence")
}
if let file = arguments.first {
  guard let text = try? String(contentsOfFile: file, encoding: .utf8) else { quit("\(file) cannot be read.") }
  sentences = text.split(omittingEmptySubsequences: false) { $0.isNewline }.dropLast(
    text.last?.isNewline == true ? 1 : 0
  )
  .map(String.init)
} else {
  sentences = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply on Tuesday."]
}

let folder = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../model").standardized.path
guard FileManager.default.fileExists(atPath: folder) else {
  quit("There are no weights in \(folder); Examples/encoder/fetch brings them.")
}
let tokenizer = try WordPiece(vocabulary: folder + "/vocab.txt")
let encoder = try Encoder(weights: folder + "/model.safetensors")

let tokens = sentences.map { tokenizer.tokens(of: $0, limit: 256) }
let vectors = try encoder.embed(tokens)

if let output {
  try NPYFile.write(StoredArray(extents: [sentences.count, Encoder.width], floats: vectors.flatMap { $0 }), to: output)
  print("\(output): \(sentences.count) vectors of \(Encoder.width) numbers")
} else {
  for (index, sentence) in sentences.enumerated() {
    let alike = vectors.map { other in
      String(format: "%6.3f", zip(vectors[index], other).reduce(0) { $0 + $1.0 * $1.1 })
    }
    print(alike.joined(separator: " "), "", sentence)
  }
}
