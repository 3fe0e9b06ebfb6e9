import PTX
import Testing

@Suite struct KernelTests {
  /// A mistake, and the sentence that the author reads.
  struct Mistake: Sendable, CustomTestStringConvertible {
    let message: String
    let build: @Sendable (KernelBuilder) -> Void
    var testDescription: String { message }

    init(_ message: String, _ build: @escaping @Sendable (KernelBuilder) -> Void) {
      self.message = message
      self.build = build
    }
  }

  @Test(arguments: [
    Mistake("A register of another kernel is used here; registers live in one kernel only.") { k in
      _ = try? Kernel.build("other", threadsPerBlock: 32) { other in
        _ = k.special(.lane) + other.special(.lane)
      }
    },
    Mistake("3 values of u32 are no vector; one access moves 1, 2 or 4 values and at most 16 bytes.") { k in
      _ = k.load(U32.self, count: 3, shared: k.dynamicShared())
    },
    Mistake("4 values of u64 are no vector; one access moves 1, 2 or 4 values and at most 16 bytes.") { k in
      _ = k.load(U64.self, count: 4, global: k.pointer("x"))
    },
    Mistake("A predicate has no place in memory; select a number with it.") { k in
      k.store(k.special(.lane) .== 0, shared: k.dynamicShared())
    },
    Mistake("The offset 8589934592 does not fit an instruction; add it to the address.") { k in
      _ = k.load(U32.self, global: k.pointer("x"), offset: 1 << 33)
    },
    Mistake("mma.m16n8k16 takes 4 registers of A, 2 of B and 4 accumulators; 2, 2 and 4 were given.") { k in
      let (word, sum) = (k.special(.lane), k.constant(0))
      k.multiplyAdd(.f16, a: [word, word], b: [word, word], into: [sum, sum, sum, sum])
    },
    Mistake("There are no f16 accumulators for bf16 inputs; use f32.") { k in
      let (word, sum) = (k.special(.lane), k.constant(bits: 0, F16x2.self))
      k.multiplyAdd(.bf16, a: [word, word, word, word], b: [word, word], into: [sum, sum])
    },
    Mistake("ldmatrix loads 1, 2 or 4 matrices; 3 were asked for.") { k in
      _ = k.loadMatrix(count: 3, shared: k.dynamicShared())
    },
    Mistake("An asynchronous copy has 4, 8 or 16 bytes; 12 were asked for.") { k in
      k.copyAsync(to: k.dynamicShared(), from: k.pointer("x"), byteCount: 12)
    },
    Mistake("A barrier of 96 threads is impossible in a block of 64; it is a multiple of 32.") { k in
      k.barrier(id: 1, threads: 96)
    },
    Mistake("There are barriers 0 to 15; 16 is none.") { k in k.barrier(id: 16) },
    Mistake("A shuffle moves 32 bits; u64 has 64.") { k in
      _ = k.shuffle(k.constant(1, U64.self), xor: 1)
    },
    Mistake("There is no atomic and of f32.") { k in
      _ = k.atomic(.and, shared: k.dynamicShared(), k.constant(1))
    },
    Mistake("f32 cannot be read as u64: the sizes differ.") { k in _ = k.constant(1).reinterpreted(as: U64.self) },
    Mistake("There are two parameters 'n'.") { k in
      _ = k.parameter("n", U32.self)
      _ = k.parameter("n", F32.self)
    },
    Mistake("'big' has 65536 bytes; static shared memory has 1 to 49152. Use dynamic shared memory beyond.") { k in
      _ = k.shared("big", byteCount: 65536)
    },
    Mistake("`when` holds instructions only; put `if` around control flow.") { k in
      let first = k.special(.lane) .== 0
      k.when(first) { k.if(first) { k.exit() } }
    },
    Mistake("The static shared buffers have 80000 bytes together; 49152 is the limit. Use dynamic shared memory.") {
      k in
      _ = k.shared("first", byteCount: 40000)
      _ = k.shared("second", byteCount: 40000)
    },
    Mistake("The constant 1099511627776 does not fit u32.") { k in _ = k.special(.lane) .< (1 << 40) },
    Mistake("There is no absolute value of u32.") { k in _ = k.absolute(k.special(.lane)) },
    Mistake("There is no minimum of predicate.") { k in
      let first = k.special(.lane) .== 0
      _ = k.minimum(first, first)
    },
    Mistake("The offset 4294967296 does not fit an instruction; add it to the address.") { k in
      _ = k.atomic(.add, global: k.pointer("x"), offset: 1 << 32, k.special(.lane))
    },
    Mistake("`when` cannot stand inside another `when`; combine the predicates with &.") { k in
      let first = k.special(.lane) .== 0
      k.when(first) { k.when(first) { k.exit() } }
    },
  ])
  func aMistakeIsASentence(_ mistake: Mistake) {
    let error = #expect(throws: KernelError.self) { try Kernel.build("wrong", threadsPerBlock: 64, mistake.build) }
    #expect(error?.message == mistake.message)
    #expect(error?.location.file == "PTXTests/KernelTests.swift")
  }

  /// The kernel that the register came from is finished and gone.
  @Test func aRegisterOfAFinishedKernelIsRefused() throws {
    var kept: Register<U32>?
    _ = try Kernel.build("first", threadsPerBlock: 32) { kept = $0.special(.lane) }
    let error = #expect(throws: KernelError.self) {
      try Kernel.build("second", threadsPerBlock: 32) { k in _ = k.special(.lane) + kept! }
    }
    #expect(error?.message == "A register of another kernel is used here; registers live in one kernel only.")
  }

  @Test func aBlockHasWholeWarps() {
    let error = #expect(throws: KernelError.self) { try Kernel.build("odd", threadsPerBlock: 48) { _ in } }
    #expect(error?.message == "A block of 48 threads is impossible; it has a multiple of 32, from 32 to 1024.")
    let name = #expect(throws: KernelError.self) { try Kernel.build("no name", threadsPerBlock: 32) { _ in } }
    #expect(name?.message == "'no name' is no name for a kernel; use letters, digits and underscores, a letter first.")
  }

  @Test func theTextReads() throws {
    let kernel = try Kernel.build("scale", threadsPerBlock: 64) { k in
      let (x, n) = (k.pointer("x"), k.parameter("n", U32.self))
      let thread = k.special(.threadX)
      k.comment("each thread one number")
      k.if(thread .< n) {
        let place = (x + k.multiplyWide(thread, 4)).named("place")
        k.store(k.load(F32.self, global: place) * 2, global: place)
      }
    }
    #expect(
      try kernel.text() == """
        .version 7.0
        .target sm_80
        .address_size 64

        .visible .entry scale(
          .param .u64 parameter_0,  // x
          .param .u32 parameter_1  // n
        )
        .maxntid 64, 1, 1
        {
          .reg .pred %p4;
          .reg .b32 %n_, %tid_x_;
          .reg .b64 %d0, %x_, %d5, %place_;
          .reg .f32 %f7, %f8;

          ld.param.u64 %d0, [parameter_0];
          cvta.to.global.u64 %x_, %d0;
          ld.param.u32 %n_, [parameter_1];
          mov.u32 %tid_x_, %tid.x;
          // each thread one number
          setp.lt.u32 %p4, %tid_x_, %n_;
          @!%p4 bra END_1;
            mul.wide.u32 %d5, %tid_x_, 4;
            add.u64 %place_, %x_, %d5;
            ld.global.b32 %f7, [%place_];
            mul.rn.f32 %f8, %f7, 0f40000000;
            st.global.b32 [%place_], %f8;
        END_1:
          ret;
        }

        """)
    #expect(try kernel.text(locations: true).contains("ld.global.b32 %f7, [%place_];  // KernelTests.swift:"))
  }

  @Test func theTargetIsTheOldestThatHasAll() throws {
    #expect(try InstructionCatalogue.ampere().requirement.target == .sm80)
    #expect(try InstructionCatalogue.ada().text().hasPrefix(".version 8.1\n.target sm_89\n"))
    #expect(try InstructionCatalogue.hopper().text().hasPrefix(".version 8.1\n.target sm_90\n"))
    #expect(try InstructionCatalogue.ampere().text(target: .sm90a).hasPrefix(".version 8.0\n.target sm_90a\n"))
    let error = #expect(throws: KernelError.self) { try InstructionCatalogue.ada().text(target: .sm80) }
    #expect(error?.message.hasSuffix("` needs sm_89; sm_80 was asked for.") == true)
    #expect(Target("sm_90a") == .sm90a && Target("sm_103")?.number == 103 && Target("volta") == nil)
  }

  /// Loops carry the pragma that keeps ptxas from unrolling them again.
  @Test func loopsStayLoops() throws {
    let text = try InstructionCatalogue.ampere().text()
    #expect(text.contains("LOOP_") && text.contains(".pragma \"nounroll\";"))
  }
}
