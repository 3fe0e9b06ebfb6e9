// swift-tools-version: 6.3
import PackageDescription

// Three programs on the library, as a package of their own would depend on it. In yours, the path leads to a clone:
//   .package(name: "FlashAttention", path: "../flash-attention")
let attention = Target.Dependency.product(name: "FlashAttention", package: "FlashAttention")

let package = Package(
  name: "Examples",
  dependencies: [.package(name: "FlashAttention", path: "..")],
  targets: [
    // A first call.
    .executableTarget(name: "hello", dependencies: [attention], path: "hello"),
    // Text written token by token over a cache, several conversations at once.
    .executableTarget(name: "decode", dependencies: [attention], path: "decode"),
    // A sentence encoder with its published weights, whole.
    .executableTarget(
      name: "encoder", dependencies: [attention, .product(name: "TensorFiles", package: "FlashAttention")],
      path: "encoder", exclude: ["fetch", "compare.py", "sentences.txt"]),
  ],
  swiftLanguageModes: [.v6]
)
