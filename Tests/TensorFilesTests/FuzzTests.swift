import Attention
import Foundation
import TensorFiles
import Testing

/// Damaged files must be refused or read, but never crash: thousands of mutations of good ones, by a fixed seed.
@Suite struct FuzzTests {
  private let folder = TemporaryFolder()

  private struct Source: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state ^ (state >> 29)
    }
  }

  /// Flips, inserts, removes, truncates, or overwrites with text that the formats give a meaning to.
  private func mutate(_ good: [UInt8], _ source: inout Source) -> [UInt8] {
    var bytes = good
    for _ in 0..<Int.random(in: 1...4, using: &source) {
      let at = Int.random(in: 0..<max(bytes.count, 1), using: &source)
      switch Int.random(in: 0...5, using: &source) {
      case 0 where !bytes.isEmpty: bytes[at] ^= 1 << UInt8.random(in: 0...7, using: &source)
      case 1 where !bytes.isEmpty: bytes[at] = UInt8.random(in: 0...255, using: &source)
      case 2: bytes.insert(UInt8.random(in: 0...255, using: &source), at: min(at, bytes.count))
      case 3: bytes.removeSubrange(min(at, bytes.count)..<min(at + 3, bytes.count))
      case 4: bytes = Array(bytes.prefix(at))
      default:
        let words = [
          "0", "0,", "-1", "9223372036854775807", "[[", "{}", "\"", "1e999", "null", "(,)", "'", "True", "\u{0}",
        ]
        let word = Array(words.randomElement(using: &source)!.utf8)
        bytes.replaceSubrange(min(at, bytes.count)..<min(at + word.count, bytes.count), with: word)
      }
    }
    return bytes
  }

  @Test func safetensors() throws {
    let header =
      #"{"__metadata__":{"a":"b"},"q":{"dtype":"F32","shape":[1,1,2,2],"data_offsets":[0,16]},"k":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}"#
    let good = SafetensorsTests.file(header, data: 24)
    var source = Source(state: 1)
    var refused = 0
    for _ in 0..<4000 {
      let path = folder.write(mutate(good, &source), to: "fuzz.safetensors")
      do {
        let file = try SafetensorsFile(path: path)
        for name in file.entries.keys.sorted() {
          do { _ = try file.array(name).tensor(layout: .bnhd)?.floats } catch { refused += 1 }
        }
      } catch {
        refused += 1
        #expect(!error.description.isEmpty)
      }
    }
    // The mutations must be neither harmless nor all alike.
    #expect(refused > 1000 && refused < 4000)
  }

  @Test func npy() throws {
    let good = NPYTests.file("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 2, 1), }")
    var source = Source(state: 2)
    var refused = 0
    for _ in 0..<4000 {
      let path = folder.write(mutate(good, &source), to: "fuzz.npy")
      do { _ = try NPYFile.read(path: path).tensor(layout: .bnhd)?.floats } catch { refused += 1 }
    }
    #expect(refused > 1000 && refused < 4000)
  }
}
