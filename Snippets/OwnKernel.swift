// A GPU kernel in Swift, run without a GPU, and broken on purpose.
import PTX
import PTXEmulator

// snippet.kernel
let kernel = try Kernel.build("reverse", threadsPerBlock: 64) { k in
  let (x, y) = (k.pointer("x"), k.pointer("y"))
  let thread = k.special(.threadX)
  let tile = k.shared("tile", byteCount: 64 * 4)
  k.store(k.load(F32.self, global: x + k.multiplyWide(thread, 4)), shared: tile + thread * 4)
  k.barrier()
  let mirrored = (k.constant(63, U32.self) - thread).named("mirrored")
  k.store(k.load(F32.self, shared: tile + mirrored * 4), global: y + k.multiplyWide(thread, 4))
}
// snippet.end

// snippet.run
func reversed(_ program: Program, _ schedule: Schedule) throws(Hazard) -> [Float]? {
  let memory = GlobalMemory()
  let x = memory.allocate("x", (0..<64).map { Float($0) }, access: .readOnly)
  let y = memory.allocate("y", byteCount: 64 * 4, access: .readWrite)
  let launch = Launch(blocks: (1, 1, 1), arguments: [.pointer(x), .pointer(y)])
  _ = try Emulator.run(program, launch, memory: memory, schedule: schedule)
  return memory.read(Float.self, count: 64, from: y)
}
let expected = (0..<64).map { Float(63 - $0) }
let result = try reversed(Program(kernel), .roundRobin)
precondition(result == expected)
// snippet.end

// snippet.mutations
// Without the barrier a warp reads what another has yet to write: some order of the warps shows it.
let survivors = Mutation.survivors(of: kernel) { program, schedule throws(Hazard) in
  try reversed(program, schedule) == expected
}
precondition(survivors.isEmpty)
// snippet.end

// snippet.text
print(try kernel.text())  // PTX, for the driver or ptxas
// snippet.end
