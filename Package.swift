// swift-tools-version: 6.3
import PackageDescription

let settings: [SwiftSetting] = [
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

/// A room of the house in CONTRIBUTING.md: a library target and the rooms it may use.
func room(_ name: String, uses dependencies: [Target.Dependency] = []) -> Target {
  .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

func tests(_ name: String, of dependencies: [Target.Dependency]) -> Target {
  .testTarget(name: name, dependencies: dependencies, swiftSettings: settings)
}

let package = Package(
  name: "FlashAttention",
  products: [
    .library(name: "FlashAttention", targets: ["FlashAttention"]),
    .library(name: "PTX", targets: ["PTX", "PTXEmulator"]),
    .library(name: "TensorFiles", targets: ["TensorFiles"]),
    .executable(name: "flash-attention", targets: ["flash-attention"]),
    .library(name: "flash_attention", type: .dynamic, targets: ["CFlashAttention"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.5.0"),
  ],
  targets: [
    room("Attention"),
    room("PTX"),
    room("PTXEmulator", uses: ["PTX"]),
    room("ExampleKernels", uses: ["PTX"]),
    room("AttentionKernels", uses: ["Attention", "PTX"]),
    room("CUDADriver"),
    .target(name: "CPUMicrokernels", cSettings: [.treatAllWarnings(as: .error)]),
    room("CPUAttention", uses: ["Attention", "CPUMicrokernels"]),
    room("TensorFiles", uses: ["Attention"]),
    room("GPURuntime", uses: ["Attention", "CUDADriver", "PTX"]),
    room("FlashAttention", uses: ["Attention", "AttentionKernels", "CPUAttention", "CUDADriver", "GPURuntime", "PTX"]),
    room(
      "AttentionVerification",
      uses: [
        "Attention", "AttentionKernels", "CPUAttention", "CUDADriver", "ExampleKernels", "FlashAttention", "GPURuntime",
        "PTX", "PTXEmulator",
      ]),
    room(
      "AttentionBenchmarks",
      uses: [
        "Attention", "AttentionKernels", "AttentionVerification", "CPUAttention", "CUDADriver", "ExampleKernels",
        "FlashAttention",
        "GPURuntime", "PTX", "TensorFiles",
      ]),
    .target(name: "FlashAttentionHeader", cSettings: [.treatAllWarnings(as: .error)]),
    room("CFlashAttention", uses: ["FlashAttention", "FlashAttentionHeader"]),
    .executableTarget(
      name: "flash-attention",
      dependencies: [
        "AttentionBenchmarks", "AttentionKernels", "AttentionVerification", "ExampleKernels", "FlashAttention", "PTX",
        "PTXEmulator", "TensorFiles",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: settings),

    tests("AttentionTests", of: ["Attention", "AttentionVerification"]),
    tests(
      "AttentionKernelsTests",
      of: [
        "Attention", "AttentionKernels", "AttentionVerification", "FlashAttention", "GPURuntime", "PTX", "PTXEmulator",
      ]),
    tests(
      "PTXTests", of: ["AttentionBenchmarks", "AttentionKernels", "AttentionVerification", "ExampleKernels", "PTX"]),
    tests(
      "PTXEmulatorTests", of: ["AttentionBenchmarks", "AttentionVerification", "ExampleKernels", "PTX", "PTXEmulator"]),
    tests("CUDADriverTests", of: ["CUDADriver"]),
    tests("TensorFilesTests", of: ["Attention", "TensorFiles"]),
    .target(name: "TileModel", path: "Tests/TileModel", cSettings: [.treatAllWarnings(as: .error)]),
    tests(
      "CPUAttentionTests", of: ["Attention", "AttentionVerification", "CPUAttention", "CPUMicrokernels", "TileModel"]),
    tests("FlashAttentionTests", of: ["AttentionKernels", "AttentionVerification", "FlashAttention", "PTX"]),
    tests(
      "CFlashAttentionTests",
      of: [
        "Attention", "AttentionKernels", "AttentionVerification", "CFlashAttention", "FlashAttention",
        "FlashAttentionHeader", "PTX",
      ]),
    tests(
      "ToolTests",
      of: [
        "Attention", "AttentionVerification", "CPUAttention", "FlashAttention", "TensorFiles", "flash-attention",
      ]),
  ],
  swiftLanguageModes: [.v6]
)
