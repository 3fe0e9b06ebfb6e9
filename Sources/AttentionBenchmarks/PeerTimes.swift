internal import AttentionVerification
internal import FoundationEssentials
package import TensorFiles

/// What other libraries need for cases of decoding, as a file says: one JSON object a line.
package struct PeerTimes {
  private struct Line: Decodable {
    let peer: String?
    let B, Nk, Nq, Hq, Hkv, D: Int?
    let ms_graph: Double?
  }

  private let lines: [Line]
  /// The libraries, in the order in which they occur.
  package let names: [String]

  /// - Throws: `TensorFileError` where the file cannot be read or has no such line.
  package init(_ path: String) throws(TensorFileError) {
    // Other lines of such files are about other things: other operations, and caches on pages.
    lines = try readLines(of: Line.self, path)
      .filter { $0.ms_graph != nil && $0.peer?.includes("+page") == false }
    if lines.isEmpty { throw .malformed(path: path, reason: "no line has peer, B, Nk, Nq, Hq, Hkv and ms_graph") }
    var names: [String] = []
    for line in lines where !names.contains(Self.name(line)) { names.append(Self.name(line)) }
    self.names = names
  }

  /// The library; what follows a plus is a way of calling it.
  private static func name(_ line: Line) -> String { String(line.peer!.prefix { $0 != "+" }) }

  /// The least that each library needs for a case, in seconds.
  package func seconds(_ one: DecodeCase, dimension: Int) -> [String: Double] {
    var result: [String: Double] = [:]
    for line in lines {
      guard (line.B, line.Nk, line.Nq) == (one.batch, one.context, one.queries),
        (line.Hq, line.Hkv, line.D ?? 128) == (one.queryHeads, one.kvHeads, dimension)
      else { continue }
      let seconds = line.ms_graph! / 1000
      result[Self.name(line)] = min(result[Self.name(line)] ?? .infinity, seconds)
    }
    return result
  }
}

/// What other libraries need for gradients, as a file says: one JSON object a line.
package struct GradientPeerTimes {
  private struct Line: Decodable {
    let kind, peer: String?
    let dtype: String?
    let B, Hq, Hkv, Nq, Nk, D, causal: Int?
    let ms: Double?
  }

  private let lines: [Line]
  /// The libraries, in the order in which they occur.
  package let names: [String]

  /// - Throws: `TensorFileError` where the file cannot be read or has no such line.
  package init(_ path: String) throws(TensorFileError) {
    lines = try readLines(of: Line.self, path)
      .filter { $0.kind == "backward" && $0.peer != nil && $0.ms != nil }
    if lines.isEmpty { throw .malformed(path: path, reason: "no line has kind backward, peer, B, Hq, Nq, D and ms") }
    var names: [String] = []
    for line in lines where !names.contains(line.peer!) { names.append(line.peer!) }
    self.names = names
  }

  /// The median of a library's times of a case, in seconds; nil where there is none, as of masks, scales and softcaps that no line
  /// speaks of.
  package func seconds(_ result: GradientBench.Result, _ name: String) -> Double? {
    if !result.isPlain { return nil }
    let own = lines.filter {
      ($0.peer, $0.B, $0.Hq, $0.Hkv ?? $0.Hq) == (name, result.batch, result.queryHeads, result.keyValueHeads)
        && ($0.Nq, $0.Nk ?? $0.Nq, $0.D) == (result.queries, result.keys, result.dimension)
        && ($0.causal ?? 0) == (result.isCausal ? 1 : 0) && ($0.dtype ?? result.scalarType) == result.scalarType
    }
    return own.isEmpty ? nil : median(own.map { $0.ms! / 1000 })
  }
}

/// The lines of a file that are JSON objects of a kind.
private func readLines<Line: Decodable>(of _: Line.Type, _ path: String) throws(TensorFileError) -> [Line] {
  guard let data = FileManager.default.contents(atPath: path) else {
    throw .unreadable(path: path, reason: "no such file, or no right to read it")
  }
  return data.split(separator: 0x0a).compactMap { try? JSONDecoder().decode(Line.self, from: Data($0)) }
}
