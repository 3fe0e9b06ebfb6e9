/// The global memory of an emulated GPU: named allocations in a sparse 64-bit address space.
///
/// Pages exist from their first use, so that an allocation may be far larger than the machine's memory: strides of 2^33
/// bytes can be tested. Allocations lie far apart, and what lies between them is out of bounds.
public final class GlobalMemory {
  /// What kernels may do with an allocation.
  public enum Access: Sendable {
    /// Any write is an error; races need not be looked for.
    case readOnly
    case readWrite
    /// As `readWrite`, but races are not looked for: for results that a caller's garbage makes sequences share.
    case anyOrder
  }

  private(set) var allocations: [Allocation] = []
  private var nextBase: UInt64 = 0x7f00_0000_0000

  /// Empty memory.
  public init() {}

  /// Reserves memory that nobody has written yet; returns its address, a multiple of 256.
  public func allocate(_ name: String, byteCount: Int, access: Access) -> UInt64 {
    let base = nextBase
    allocations.append(Allocation(name: name, base: base, byteCount: byteCount, access: access))
    nextBase += (UInt64(byteCount) + (1 << 30)) & ~255
    return base
  }

  /// Reserves memory that holds the given elements.
  public func allocate<T: BitwiseCopyable>(_ name: String, _ elements: [T], access: Access) -> UInt64 {
    let address = allocate(name, byteCount: elements.count * MemoryLayout<T>.stride, access: access)
    write(elements, to: address)
    return address
  }

  /// Writes elements as the host does, before a launch. Traps outside the allocations.
  public func write<T: BitwiseCopyable>(_ elements: [T], to address: UInt64) {
    elements.withUnsafeBytes { source in
      if source.isEmpty { return }
      let allocation = allocation(of: address)!
      allocation.hostWrite(source, at: Int(address - allocation.base))
    }
  }

  /// Reads elements as the host does, after a launch; nil where one of their bytes was never written.
  public func read<T: BitwiseCopyable>(_: T.Type, count: Int, from address: UInt64) -> [T]? {
    let allocation = allocation(of: address)!
    return [T](unsafeUninitializedCapacity: count) { buffer, initialized in
      let isWritten = allocation.hostRead(UnsafeMutableRawBufferPointer(buffer), at: Int(address - allocation.base))
      initialized = isWritten ? count : 0
    }.nilIfShorter(than: count)
  }

  private var last = 0

  /// The allocation that an address is in, or the one before it.
  @inline(__always)
  func allocation(near address: UInt64) -> Allocation? {
    if last < allocations.count, address >= allocations[last].base,
      address - allocations[last].base < UInt64(allocations[last].byteCount)
    {
      return allocations[last]
    }
    guard let index = allocations.lastIndex(where: { address >= $0.base }) else { return nil }
    last = index
    return allocations[index]
  }

  func allocation(of address: UInt64) -> Allocation? {
    allocations.first { address >= $0.base && address - $0.base < UInt64($0.byteCount) }
  }
}

extension Array {
  fileprivate func nilIfShorter(than count: Int) -> [Element]? { self.count < count ? nil : self }
}

/// One allocation: pages of bytes with their shadows.
final class Allocation {
  static let pageBits = 16
  static let pageSize = 1 << pageBits

  struct Page {
    let bytes: UnsafeMutableRawPointer
    let shadow: ShadowMemory
  }

  let name: String
  let base: UInt64
  let byteCount: Int
  let access: GlobalMemory.Access
  var isReadOnly: Bool { access == .readOnly }
  private var pages: [Int: Page] = [:]
  private var lastNumber = -1
  private var lastPage: Page?
  /// What atomics published, by offset.
  var published: [Int: Publication] = [:]
  var traffic = Counters.Traffic()

  init(name: String, base: UInt64, byteCount: Int, access: GlobalMemory.Access) {
    self.name = name
    self.base = base
    self.byteCount = byteCount
    self.access = access
  }

  deinit { for page in pages.values { page.bytes.deallocate() } }

  /// The page that holds an offset; made on first use, its bytes not written by anyone.
  @inline(__always)
  func page(_ offset: Int) -> Page {
    let number = offset >> Self.pageBits
    if number == lastNumber { return lastPage! }
    return otherPage(number)
  }

  private func otherPage(_ number: Int) -> Page {
    let page = pages[number] ?? makePage(number)
    lastNumber = number
    lastPage = page
    return page
  }

  private func makePage(_ number: Int) -> Page {
    let bytes = UnsafeMutableRawPointer.allocate(byteCount: Self.pageSize, alignment: 64)
    // A pattern that shows in results: nobody may read it.
    bytes.initializeMemory(as: UInt8.self, repeating: 0xdb, count: Self.pageSize)
    let page = Page(bytes: bytes, shadow: ShadowMemory(byteCount: Self.pageSize, warps: nil))
    pages[number] = page
    return page
  }

  private func eachPiece(_ offset: Int, _ count: Int, _ body: (Page, _ within: Int, _ done: Int, _ length: Int) -> Void)
  {
    var done = 0
    while done < count {
      let within = (offset + done) & (Self.pageSize - 1)
      let length = min(count - done, Self.pageSize - within)
      body(page(offset + done), within, done, length)
      done += length
    }
  }

  func hostWrite(_ source: UnsafeRawBufferPointer, at offset: Int) {
    precondition(offset + source.count <= byteCount, "The host writes beyond '\(name)'.")
    eachPiece(offset, source.count) { page, within, done, length in
      (page.bytes + within).copyMemory(from: source.baseAddress! + done, byteCount: length)
      page.shadow.initialize(within..<within + length)
    }
  }

  /// False where a byte was never written.
  func hostRead(_ destination: UnsafeMutableRawBufferPointer, at offset: Int) -> Bool {
    precondition(offset + destination.count <= byteCount, "The host reads beyond '\(name)'.")
    var isWritten = true
    eachPiece(offset, destination.count) { page, within, done, length in
      (destination.baseAddress! + done).copyMemory(from: page.bytes + within, byteCount: length)
      if !page.shadow.isWritten(within..<within + length) { isWritten = false }
    }
    return isWritten
  }

  /// The launch is over: everything that was written was written before the next.
  func settle() {
    for page in pages.values { page.shadow.settle() }
    published = [:]
  }
}

/// What an atomic location passes on to those who acquire it.
struct Publication {
  /// To threads of the whole device, by the block that published it.
  var toDevice: [Int32: Knowledge] = [:]
  /// To threads of one block, by block-wide fences.
  var toBlock: [Int32: Knowledge] = [:]
}
