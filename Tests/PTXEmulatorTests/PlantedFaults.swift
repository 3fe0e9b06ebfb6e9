import PTX
import PTXEmulator

/// A mistake that somebody could make, and the same kernel without it.
struct PlantedFault: Sendable, CustomStringConvertible {
  /// What a kernel gets: three arrays of 1024 words, and a mark for the line of the mistake.
  struct Setting {
    let k: KernelBuilder
    /// Read-only, 0, 1, 2, ...
    let input: Register<U64>
    /// Written by nobody.
    let output: Register<U64>
    /// Zeros, for counters and flags.
    let scratch: Register<U64>
    let thread: Register<U32>
    let lane: Register<U32>
    fileprivate let mark: Mark

    /// The mistake is on this line; of two accesses that race, on either.
    func here(_ line: Int = #line) { mark.lines.insert(line) }

    /// Shared memory that holds zeros.
    func zeroedShared() -> Register<U32> {
      let shared = k.dynamicShared()
      let zero = k.constant(0, U32.self)
      for i in 0..<2 { k.store([zero, zero, zero, zero], shared: shared + thread * 16, offset: i * 1024) }
      k.barrier()
      return shared
    }
  }

  fileprivate final class Mark { var lines: Set<Int> = [] }

  let name: String
  let kind: Hazard.Kind
  let blocks: Int
  let faulty: @Sendable (Setting) -> Void
  let clean: @Sendable (Setting) -> Void

  init(
    _ name: String, _ kind: Hazard.Kind, blocks: Int = 1, faulty: @escaping @Sendable (Setting) -> Void,
    clean: @escaping @Sendable (Setting) -> Void
  ) {
    self.name = name
    self.kind = kind
    self.blocks = blocks
    self.faulty = faulty
    self.clean = clean
  }

  var description: String { name }

  /// A kernel of 64 threads, and the lines that were marked.
  func kernel(isFaulty: Bool) throws -> (Kernel, lines: Set<Int>) {
    let mark = Mark()
    let kernel = try Kernel.build("planted", threadsPerBlock: 64) { k in
      let (input, output, scratch) = (k.pointer("input"), k.pointer("output"), k.pointer("scratch"))
      let setting = Setting(
        k: k, input: input, output: output, scratch: scratch, thread: k.special(.threadX), lane: k.special(.lane),
        mark: mark)
      isFaulty ? faulty(setting) : clean(setting)
    }
    return (kernel, mark.lines)
  }

  func run(_ kernel: Kernel, _ schedule: Schedule) throws(Hazard) {
    let memory = GlobalMemory()
    let input = memory.allocate("input", (0..<1024).map { UInt32($0) }, access: .readOnly)
    let output = memory.allocate("output", byteCount: 4096, access: .readWrite)
    let scratch = memory.allocate("scratch", [UInt32](repeating: 0, count: 1024), access: .readWrite)
    let dynamic = kernel.dynamicSharedAlignment == nil ? 0 : 2048
    _ = try Emulator.run(
      Program(kernel),
      Launch(
        blocks: (blocks, 1, 1), dynamicSharedByteCount: dynamic,
        arguments: [.pointer(input), .pointer(output), .pointer(scratch)]),
      memory: memory, schedule: schedule, stepLimit: 1_000_000)
  }
}

extension PlantedFault.Setting {
  /// 16 bytes of the input for each thread, on their way to shared memory.
  fileprivate func startCopy(to shared: Register<U32>, line: Int = #line) {
    k.copyAsync(to: shared + thread * 16, from: input + k.multiplyWide(thread, 16), line: line)
  }

  fileprivate func storeOutput(_ value: Register<U32>, line: Int = #line) {
    k.store(value, global: output + k.multiplyWide(thread, 4), line: line)
  }
}

extension PlantedFault {
  static let all: [PlantedFault] = sharedMemory + strongAccesses + copies + bounds + control + betweenBlocks

  private static let sharedMemory = [
    PlantedFault("a barrier is missing between a write and another warp's read", .race) { s in
      let shared = s.zeroedShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.here(#line - 1)
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 4))
      s.here(#line - 1)
    } clean: { s in
      let shared = s.zeroedShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.k.barrier()
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 4))
    },
    PlantedFault("a warp barrier is missing between lanes of one warp", .race) { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 1) * 4))
      s.here(#line - 1)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.k.warpBarrier()
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 1) * 4))
    },
    PlantedFault("a tile is overwritten while another warp may still read it", .race) { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.k.barrier()
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 4))
      s.here(#line - 1)
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.here(#line - 1)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.k.barrier()
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 4))
      s.k.barrier()
      s.k.store(s.thread, shared: shared + s.thread * 4)
    },
    PlantedFault("two lanes write the same 16 bits", .race) { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.k.halves(s.thread).low, shared: shared + (s.thread / 2) * 2)
      s.here(#line - 1)
    } clean: { s in
      // Neighbours write the two halves of one word: no race.
      let shared = s.k.dynamicShared()
      s.k.store(s.k.halves(s.thread).low, shared: shared + s.thread * 2)
    },
    PlantedFault("shared memory is read that nobody wrote", .uninitialized) { s in
      let shared = s.k.dynamicShared()
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 4))
      s.here(#line - 1)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 4))
    },
    PlantedFault("a plain store races with an atomic", .race) { s in
      let shared = s.zeroedShared()
      s.k.when(s.thread .== 0) { s.k.store(s.thread, shared: shared) }
      s.here(#line - 1)
      s.k.when(s.thread .== 32) { _ = s.k.atomic(.add, shared: shared, s.thread) }
      s.here(#line - 1)
    } clean: { s in
      let shared = s.zeroedShared()
      s.k.when(s.thread .== 0) { s.k.store(s.thread, shared: shared) }
      s.k.barrier()
      _ = s.k.atomic(.add, shared: shared, s.thread)
    },
  ]

  private static let strongAccesses = [
    PlantedFault("a sum in memory is read while others may add to it", .race) { s in
      s.k.add([s.k.constant(1)], global: s.scratch)
      s.here(#line - 1)
      s.k.when(s.thread .== 31) { s.storeOutput(s.k.load(U32.self, global: s.scratch)) }
      s.here(#line - 1)
    } clean: { s in
      s.k.add([s.k.constant(1)], global: s.scratch)
      s.k.barrier()
      s.k.when(s.thread .== 31) { s.storeOutput(s.k.load(U32.self, global: s.scratch)) }
    },
    PlantedFault("a plain read comes after one lane's atomic, but not after the others'", .race) { s in
      let shared = s.zeroedShared()
      _ = s.k.atomic(.add, shared: shared, s.thread)
      s.here(#line - 1)
      s.k.when(s.thread .== 31) { s.storeOutput(s.k.load(U32.self, shared: shared)) }
      s.here(#line - 1)
    } clean: { s in
      let shared = s.zeroedShared()
      _ = s.k.atomic(.add, shared: shared, s.thread)
      s.k.barrier()
      s.k.when(s.thread .== 31) { s.storeOutput(s.k.load(U32.self, shared: shared)) }
    },
    PlantedFault("a plain store races with an ordered load", .race) { s in
      s.k.if(s.thread .< 32) {
        s.storeOutput(s.k.load(U32.self, global: s.scratch, ordering: .relaxed))
        s.here(#line - 1)
      } else: {
        s.k.when(s.lane .== 0) { s.k.store(s.thread, global: s.scratch) }
        s.here(#line - 1)
      }
    } clean: { s in
      s.k.if(s.thread .< 32) { s.storeOutput(s.k.load(U32.self, global: s.scratch, ordering: .relaxed)) }
      s.k.barrier()
      s.k.when(s.thread .== 63) { s.k.store(s.thread, global: s.scratch) }
    },
    PlantedFault("one lane of many publishes a read, and all are overwritten", .race) { s in
      countReaders(s, all: false)
    } clean: { s in
      countReaders(s, all: true)
    },
    PlantedFault("a read-only load of what the kernel writes", .undefined) { s in
      s.storeOutput(s.thread)
      s.storeOutput(s.k.load(U32.self, global: s.output + s.k.multiplyWide(s.thread, 4), hint: .readOnly))
      s.here(#line - 1)
    } clean: { s in
      s.storeOutput(s.thread)
      s.storeOutput(s.k.load(U32.self, global: s.output + s.k.multiplyWide(s.thread, 4)))
    },
  ]

  /// The lanes of warp 0 read a word and count themselves; warp 1 waits for the count and overwrites the word.
  private static func countReaders(_ s: Setting, all: Bool) {
    let k = s.k
    let shared = s.zeroedShared()
    let one = k.constant(1, U32.self)
    k.if(s.thread .< 32) {
      s.storeOutput(k.load(U32.self, shared: shared))
      s.here(#line - 1)
      k.if(all ? s.lane .< 32 : s.lane .== 0) {
        _ = k.atomic(.add, shared: shared, offset: 64, one, ordering: .release)
      }
    } else: {
      k.if(s.lane .== 0) {
        k.loop { k.atomic(.add, shared: shared, offset: 64, one - 1, ordering: .acquire) .< (all ? 32 : 1) }
        k.store(one, shared: shared)
        s.here(#line - 1)
      }
    }
  }

  private static let copies = [
    PlantedFault("a copy takes more than it copies", .undefined) { s in
      s.k.copyAsync(
        to: s.k.dynamicShared() + s.thread * 16, from: s.input, sourceBytes: s.k.constant(64, U32.self), line: #line)
      s.here(#line - 1)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
    } clean: { s in
      s.k.copyAsync(to: s.k.dynamicShared() + s.thread * 16, from: s.input, sourceBytes: s.k.constant(7, U32.self))
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
    },
    PlantedFault("the source of a copy is not aligned", .misaligned) { s in
      s.k.copyAsync(to: s.k.dynamicShared() + s.thread * 16, from: s.input + 4076)
      s.here(#line - 1)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
    } clean: { s in
      s.k.copyAsync(to: s.k.dynamicShared() + s.thread * 16, from: s.input + 4080)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
    },
    PlantedFault("a copied tile is read before the copy is waited for", .copyUnderWay) { s in
      let shared = s.k.dynamicShared()
      s.startCopy(to: shared)
      s.k.commitCopies()
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 16))
      s.here(#line - 1)
      s.k.waitForCopies(pending: 0)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.startCopy(to: shared)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 16))
    },
    PlantedFault("the wait leaves one group too many under way", .copyUnderWay) { s in
      let shared = s.k.dynamicShared()
      s.startCopy(to: shared)
      s.k.commitCopies()
      s.startCopy(to: shared + 1024)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 1)
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 16, offset: 1024))
      s.here(#line - 1)
      s.k.waitForCopies(pending: 0)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.startCopy(to: shared)
      s.k.commitCopies()
      s.startCopy(to: shared + 1024)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 1)
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 16))
      s.k.waitForCopies(pending: 0)
    },
    PlantedFault("the copies are never made a group", .copyUnderWay) { s in
      let shared = s.k.dynamicShared()
      s.startCopy(to: shared)
      s.k.waitForCopies(pending: 0)
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 16))
      s.here(#line - 1)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.startCopy(to: shared)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
      s.storeOutput(s.k.load(U32.self, shared: shared + s.thread * 16))
    },
    PlantedFault("others read a copied tile after the wait, but before a barrier", .race) { s in
      let shared = s.zeroedShared()
      s.startCopy(to: shared)
      s.here(#line - 1)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 16))
      s.here(#line - 1)
    } clean: { s in
      let shared = s.zeroedShared()
      s.startCopy(to: shared)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
      s.k.barrier()
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 16))
    },
    PlantedFault("a copy overwrites what another warp may still read", .race) { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 16)
      s.k.barrier()
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 16))
      s.here(#line - 1)
      s.k.copyAsync(to: shared + s.thread * 16, from: s.input)
      s.here(#line - 1)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 16)
      s.k.barrier()
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 32) * 16))
      s.k.barrier()
      s.k.copyAsync(to: shared + s.thread * 16, from: s.input)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
    },
    PlantedFault("the source of a copy is written under way", .sourceChanged) { s in
      let shared = s.k.dynamicShared()
      let place = s.scratch + s.k.multiplyWide(s.thread, 16)
      s.k.copyAsync(to: shared + s.thread * 16, from: place)
      s.here(#line - 1)
      s.k.commitCopies()
      s.k.store(s.thread + 1, global: place)
      s.k.waitForCopies(pending: 0)
    } clean: { s in
      let shared = s.k.dynamicShared()
      let place = s.scratch + s.k.multiplyWide(s.thread, 16)
      s.k.copyAsync(to: shared + s.thread * 16, from: place)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
      s.k.store(s.thread + 1, global: place)
    },
    PlantedFault("the kernel ends with copies under way", .unfinishedCopy) { s in
      let shared = s.k.dynamicShared()
      s.k.copyAsync(to: shared + s.thread * 16, from: s.input)
      s.here(#line - 1)
      s.k.commitCopies()
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.k.copyAsync(to: shared + s.thread * 16, from: s.input)
      s.k.commitCopies()
      s.k.waitForCopies(pending: 0)
    },
  ]

  private static let bounds = [
    PlantedFault("a thread reads beyond an array", .outOfBounds) { s in
      s.storeOutput(s.k.load(U32.self, global: s.input + s.k.multiplyWide(s.thread, 4), offset: 3844))
      s.here(#line - 1)
    } clean: { s in
      s.storeOutput(s.k.load(U32.self, global: s.input + s.k.multiplyWide(s.thread, 4), offset: 3840))
    },
    PlantedFault("a thread reads beyond shared memory", .outOfBounds) { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 4, offset: 1796)
      s.here(#line - 1)
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.k.store(s.thread, shared: shared + s.thread * 4, offset: 1792)
    },
    PlantedFault("a vector is not aligned to its size", .misaligned) { s in
      let pair = s.k.load(U32.self, count: 2, global: s.input + s.k.multiplyWide(s.thread, 4))
      s.here(#line - 1)
      s.storeOutput(pair[1])
    } clean: { s in
      s.storeOutput(s.k.load(U32.self, count: 2, global: s.input + s.k.multiplyWide(s.thread, 8))[1])
    },
    PlantedFault("an output is read that nobody wrote", .uninitialized) { s in
      s.storeOutput(s.k.load(U32.self, global: s.output + s.k.multiplyWide(s.thread, 4)))
      s.here(#line - 1)
    } clean: { s in
      s.storeOutput(s.k.load(U32.self, global: s.scratch + s.k.multiplyWide(s.thread, 4)))
    },
    PlantedFault("an input is written", .readOnly) { s in
      s.k.store(s.thread, global: s.input + s.k.multiplyWide(s.thread, 4))
      s.here(#line - 1)
    } clean: { s in
      s.k.store(s.thread, global: s.scratch + s.k.multiplyWide(s.thread, 4))
    },
  ]

  private static let control = [
    PlantedFault("a barrier stands in a branch that half a warp takes", .divergence) { s in
      s.k.if(s.lane .< 16) {
        s.k.barrier(file: #fileID, line: #line); s.here()
      }
    } clean: { s in
      s.k.if(s.lane .< 16) { s.storeOutput(s.thread) }
      s.k.barrier()
    },
    PlantedFault("a shuffle is run by a part of a warp", .divergence) { s in
      s.k.if(s.lane .< 31) {
        s.storeOutput(s.k.shuffle(s.thread, xor: 1)); s.here()
      }
    } clean: { s in
      let other = s.k.shuffle(s.thread, xor: 1)
      s.k.if(s.lane .< 31) { s.storeOutput(other) }
    },
    PlantedFault("ldmatrix is run by a part of a warp", .divergence) { s in
      let shared = s.k.dynamicShared()
      s.k.store([s.thread, s.thread, s.thread, s.thread], shared: shared + s.thread * 16)
      s.k.warpBarrier()
      s.k.if(s.lane .< 8) {
        s.storeOutput(s.k.loadMatrix(count: 1, shared: shared + s.thread * 16)[0]); s.here()
      }
    } clean: { s in
      let shared = s.k.dynamicShared()
      s.k.store([s.thread, s.thread, s.thread, s.thread], shared: shared + s.thread * 16)
      s.k.warpBarrier()
      s.storeOutput(s.k.loadMatrix(count: 1, shared: shared + s.thread * 16)[0])
    },
    PlantedFault("only one warp comes to a barrier", .deadlock) { s in
      s.k.if(s.thread .< 32) {
        s.k.barrier(file: #fileID, line: #line); s.here()
      }
    } clean: { s in
      s.k.if(s.thread .< 32) { s.k.barrier(id: 1, threads: 32) }
    },
    PlantedFault("two warps count a barrier differently", .barrier) { s in
      // Barrier 1 holds warp 0 until both have passed barrier 2.
      s.k.if(s.thread .< 32) {
        s.k.arrive(id: 1, threads: 64)
        s.k.barrier(id: 2, threads: 64)
      } else: {
        s.k.barrier(id: 2, threads: 64)
        s.k.barrier(id: 1, threads: 32)
        s.here(#line - 1)
      }
    } clean: { s in
      s.k.if(s.thread .< 32) {
        s.k.arrive(id: 1, threads: 64)
        s.k.barrier(id: 2, threads: 64)
      } else: {
        s.k.barrier(id: 2, threads: 64)
        s.k.barrier(id: 1, threads: 64)
      }
    },
    PlantedFault("a consumer does not wait for its producer", .race) { s in
      let shared = s.zeroedShared()
      s.k.if(s.thread .< 32) {
        s.k.store(s.thread, shared: shared + s.lane * 4)
        s.here(#line - 1)
        s.k.arrive(id: 1, threads: 64)
      } else: {
        s.storeOutput(s.k.load(U32.self, shared: shared + s.lane * 4))
        s.here(#line - 1)
        s.k.barrier(id: 1, threads: 64)
      }
    } clean: { s in
      let shared = s.zeroedShared()
      s.k.if(s.thread .< 32) {
        s.k.store(s.thread, shared: shared + s.lane * 4)
        s.k.arrive(id: 1, threads: 64)
      } else: {
        s.k.barrier(id: 1, threads: 64)
        s.storeOutput(s.k.load(U32.self, shared: shared + s.lane * 4))
      }
    },
    PlantedFault("a warp arrives at a barrier and takes it for one", .race) { s in
      let shared = s.zeroedShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.here(#line - 1)
      s.k.arrive(id: 1, threads: 64)
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 1) * 4))
      s.here(#line - 1)
    } clean: { s in
      let shared = s.zeroedShared()
      s.k.store(s.thread, shared: shared + s.thread * 4)
      s.k.warpBarrier()
      s.k.arrive(id: 1, threads: 64)
      s.storeOutput(s.k.load(U32.self, shared: shared + (s.thread ^ 1) * 4))
    },
    PlantedFault("a loop never ends", .deadlock) { s in
      let always = s.lane .< 32
      s.k.loop { always }
      s.here(#line - 1)
    } clean: { s in
      s.k.loop(from: s.thread, to: s.thread + 3) { s.storeOutput($0) }
    },
    PlantedFault("the kernel finds something impossible", .trap) { s in
      s.k.if(s.thread .== 63) {
        s.k.trap(); s.here()
      }
    } clean: { s in
      s.k.if(s.thread .== 64) { s.k.trap() }
    },
  ]

  /// The last block of two sums up what both wrote: the pattern of a combine in one launch.
  private static func lastBlock(
    _ s: Setting, barrier: Bool = true, release: Bool = true, acquire: Bool = true,
    scope: Synchronization.Scope = .device, readerScope: Synchronization.Scope = .device
  ) {
    let k = s.k
    let block = k.special(.blockX)
    let flag = k.shared("is_last", byteCount: 4)
    // Partial results: the second half of the scratch array.
    let partials = s.scratch + 2048
    k.store(s.thread, global: partials + k.multiplyWide(block * 64 + s.thread, 4))
    s.here(#line - 1)
    if barrier { k.barrier() }
    k.if(s.thread .== 0) {
      if release { k.fence(scope) }
      let before = k.atomic(.add, global: s.scratch, k.constant(1, U32.self))
      if acquire { k.fence(readerScope) }
      k.store(before, shared: flag)
    }
    k.barrier()
    let isLast = k.load(U32.self, shared: flag) .== 1
    k.if(isLast) {
      let other = k.constant(1, U32.self) - block
      let value = k.load(U32.self, global: partials + k.multiplyWide(other * 64 + (s.thread ^ 33), 4))
      s.here(#line - 1)
      k.store(value, global: s.scratch + k.multiplyWide(s.thread, 4), offset: 1024)
    }
  }

  private static let betweenBlocks = [
    PlantedFault("blocks exchange without a fence before the atomic", .race, blocks: 2) {
      lastBlock($0, release: false)
    } clean: {
      lastBlock($0)
    },
    PlantedFault("blocks exchange without a fence after the atomic", .race, blocks: 2) {
      lastBlock($0, acquire: false)
    } clean: {
      lastBlock($0)
    },
    PlantedFault("one thread publishes what others wrote, without a barrier first", .race, blocks: 2) {
      lastBlock($0, barrier: false)
    } clean: {
      lastBlock($0)
    },
    PlantedFault("blocks exchange with a fence for one block only", .race, blocks: 2) {
      lastBlock($0, scope: .block)
    } clean: {
      lastBlock($0)
    },
    PlantedFault("the reader's fence is for one block only", .race, blocks: 2) {
      lastBlock($0, readerScope: .block)
    } clean: {
      lastBlock($0)
    },
    PlantedFault("two blocks write the same word", .race, blocks: 2) { s in
      s.storeOutput(s.thread)
      s.here(#line - 1)
    } clean: { s in
      s.k.store(s.thread, global: s.output + s.k.multiplyWide(s.k.special(.blockX) * 64 + s.thread, 4))
    },
    PlantedFault("a flag is waited for, but not acquired", .race, blocks: 2) { s in
      handOver(s, ordering: .relaxed)
    } clean: { s in
      handOver(s, ordering: .acquire)
    },
  ]

  /// Block 0 writes a word and raises a flag; block 1 spins on the flag and reads the word.
  private static func handOver(_ s: Setting, ordering: Memory.Ordering) {
    let k = s.k
    k.if(s.thread .== 0) {
      k.if(k.special(.blockX) .== 0) {
        k.store(s.thread + 7, global: s.output)
        k.store(s.thread + 1, global: s.scratch, ordering: .release)
      } else: {
        k.loop { k.load(U32.self, global: s.scratch, ordering: ordering) .== 0 }
        let word = k.load(U32.self, global: s.output)
        s.here(#line - 1)
        k.store(word, global: s.output, offset: 4)
      }
    }
  }
}
