package import Attention
internal import PTX

/// Which kernels suit a problem on a GPU, and why: every candidate of every family, with its predicted cost or with
/// what stands against it.
package struct Choice: Sendable {
  /// A tiling of a family that there is a kernel with.
  package struct Candidate: Sendable {
    /// The family's name.
    package let family: String
    /// The tiling.
    package let tiling: any KernelTiling
    /// What a call should take.
    package let cost: KernelCost
    let launches: @Sendable () throws(AttentionError) -> LaunchSequence
  }

  /// What was refused.
  package struct Refusal: Sendable {
    /// The family's name.
    package let family: String
    /// A tiling; nil where all of the family's were.
    package let tiling: (any KernelTiling)?
    /// The end of a sentence about it.
    package let reason: String
  }

  /// The candidates, the cheapest first.
  package private(set) var ranked: [Candidate] = []
  /// The others.
  package private(set) var refused: [Refusal] = []
  /// What a family that is made for such problems found wrong with this one.
  private var errors: [AttentionError] = []
  /// What families know nothing of.
  private var limitations: [(family: String, reason: String)] = []

  /// The candidates of all families, or of the one that the options name.
  ///
  /// - Throws: `AttentionError` for options that cannot be had.
  package init(
    _ problem: AttentionProblem, on gpu: GPULimits, options: KernelOptions = KernelOptions(),
    families: [any KernelFamily.Type] = KernelFamilies.all
  ) throws(AttentionError) {
    let asked = families.filter { options.family == nil || $0.name == options.family }
    if asked.isEmpty {
      throw .unsupported(
        "There are no \(options.family ?? "") kernels; there are "
          + "\(families.dropLast().map { $0.name }.joined(separator: ", ")) and \(families.last?.name ?? "") ones."
      )
    }
    for family in asked { consider(family, problem, gpu) }
    rank()
    if let changes = options.tiling { try change(by: changes, asked, problem, gpu) }
    if ranked.isEmpty { throw error(gpu, isAsked: options.family != nil) }
  }

  /// Some tilings of a family, whatever other families could do.
  package init<Family: KernelFamily>(
    _ problem: AttentionProblem, on gpu: GPULimits, among tilings: [Family.Tiling], of family: Family.Type
  ) {
    consider(family, tilings, problem, gpu)
    rank()
  }

  private mutating func rank() { ranked.sort { $0.cost.seconds < $1.cost.seconds } }

  private mutating func consider<Family: KernelFamily>(
    _ family: Family.Type, _ problem: AttentionProblem, _ gpu: GPULimits
  ) {
    func refuse(_ reason: String) { refused.append(Refusal(family: family.name, tiling: nil, reason: reason)) }
    if !family.architecture.includes(gpu) {
      return refuse("are for GPUs of \(family.architecture.description); this is sm_\(gpu.capability)")
    }
    if let limitation = family.limitation(for: problem) {
      limitations.append((family.name, limitation))
      return refuse("know no \(limitation)")
    }
    do throws(AttentionError) {
      try family.check(problem, on: gpu)
    } catch {
      errors.append(error)
      return refuse("do not take it: \(error)")
    }
    consider(family, family.tilings(for: problem, on: gpu), problem, gpu)
  }

  private mutating func consider<Family: KernelFamily>(
    _ family: Family.Type, _ tilings: [Family.Tiling], _ problem: AttentionProblem, _ gpu: GPULimits
  ) {
    for tiling in tilings {
      if let obstacle = family.obstacle(to: tiling, for: problem, on: gpu) {
        refused.append(Refusal(family: family.name, tiling: tiling, reason: obstacle))
      } else {
        ranked.append(Self.candidate(family, family.completed(tiling, for: problem, on: gpu), problem, gpu))
      }
    }
  }

  private static func candidate<Family: KernelFamily>(
    _ family: Family.Type, _ tiling: Family.Tiling, _ problem: AttentionProblem, _ gpu: GPULimits
  ) -> Candidate {
    let (costed, fitted) = problem.keysPerSplit == nil ? (problem, gpu) : nominal(problem, gpu)
    return Candidate(family: family.name, tiling: tiling, cost: family.cost(of: tiling, for: costed, on: fitted)) {
      () throws(AttentionError) in try family.launches(tiling, for: problem, on: gpu)
    }
  }

  /// With splits of a fixed length, a sequence's result depends on nothing but itself: neither on how many others there
  /// are and how long they can be, nor on the grid. The tiling is then that of many long sequences on a GPU like the
  /// one that costs were fitted on.
  private static func nominal(_ problem: AttentionProblem, _ gpu: GPULimits) -> (AttentionProblem, GPULimits) {
    let many = try? AttentionProblem(
      batch: 64, queries: problem.queries, queryHeads: problem.queryHeads, keyValueHeads: problem.keyValueHeads,
      dimension: problem.dimension, valueDimension: problem.valueDimension,
      keys: .contiguous(sequences: 64, capacity: 16384), scalarType: problem.scalarType, queryType: problem.queryType,
      cacheType: problem.cacheType, mask: problem.mask, keysPerSplit: problem.keysPerSplit)
    var fitted = GPULimits.typical(of: .sm90)
    fitted.target = gpu.target
    // Of more queries than there can be 64 times, no other sequence is in the batch anyway.
    return (many ?? problem, fitted)
  }

  /// The candidates become those that changes make of the best of each family.
  private mutating func change(
    by changes: TilingChanges, _ families: [any KernelFamily.Type], _ problem: AttentionProblem, _ gpu: GPULimits
  ) throws(AttentionError) {
    let best = families.compactMap { family in ranked.first { $0.family == family.name }.map { (family, $0) } }
    if best.isEmpty { return }
    ranked = []
    // Of a family that understands the changes rather than of one that does not.
    var failures: (read: AttentionError?, unread: AttentionError?)
    for (family, candidate) in best {
      do throws(AttentionError) {
        ranked.append(try Self.changed(family, candidate, changes, problem, gpu))
      } catch {
        if candidate.tiling.changed(by: changes) == nil {
          failures.unread = failures.unread ?? error
        } else {
          failures.read = failures.read ?? error
        }
      }
    }
    if ranked.isEmpty, let failure = failures.read ?? failures.unread { throw failure }
    rank()
  }

  private static func changed<Family: KernelFamily>(
    _ family: Family.Type, _ candidate: Candidate, _ changes: TilingChanges, _ problem: AttentionProblem,
    _ gpu: GPULimits
  ) throws(AttentionError) -> Candidate {
    guard let tiling = (candidate.tiling as? Family.Tiling)?.changed(by: changes) else {
      throw .tiling(
        "\(changes)", reason: "cannot be read; write any of \(Family.Tiling.changeSyntax), with commas")
    }
    if let obstacle = family.obstacle(to: changes, for: problem) { throw .tiling("\(changes)", reason: obstacle) }
    if let obstacle = family.obstacle(to: tiling, for: problem, on: gpu) {
      throw .tiling("\(tiling)", reason: obstacle)
    }
    return Self.candidate(family, tiling, problem, gpu)
  }

  /// Why there is no candidate.
  private func error(_ gpu: GPULimits, isAsked: Bool) -> AttentionError {
    if let error = errors.first { return error }
    if let (family, reason) = limitations.first, limitations.count == refused.count {
      return .unsupported(
        isAsked
          ? "The \(family) kernels know no \(reason); leave the choice of kernels to the plan, or leave out the \(reason)."
          : "No kernel takes this: "
            + limitations.map { "the \($0.family) kernels know no \($0.reason)" }.joined(separator: ", ") + ".")
    }
    if refused.allSatisfy({ $0.tiling == nil }), let only = refused.first {
      return .deviceUnavailable(device: "GPU", reason: "the \(only.family) kernels \(only.reason).")
    }
    if refused.isEmpty {
      return .unsupported(
        "The kernels that were asked for have blocks of 64 rows and more, most of which this problem would leave empty; leave "
          + "the choice of kernels to the plan.")
    }
    if let other = refused.first(where: { $0.tiling != nil && !$0.reason.hasPrefix("needs") }),
      let tiling = other.tiling
    {
      return .tiling("\(tiling)", reason: other.reason)
    }
    return .tiling("any", reason: "needs more shared memory or registers than \(gpu.name) has")
  }
}

extension Choice: CustomStringConvertible {
  /// A line for each candidate, the cheapest first, and one for each refusal.
  package var description: String {
    let best = ranked.first?.cost.seconds ?? 1
    var lines = ["ranked by predicted time, as a multiple of the first's:"]
    for candidate in ranked {
      let ratio = rounded(candidate.cost.seconds / best, digits: 2)
      lines.append("  \(ratio)  \(candidate.cost)  \(candidate.family): \(candidate.tiling.changes)")
    }
    if !refused.isEmpty { lines.append("refused:") }
    for refusal in refused {
      lines.append(
        refusal.tiling.map { "  \(refusal.family): \($0.changes): \(refusal.reason)" }
          ?? "  the \(refusal.family) kernels \(refusal.reason)")
    }
    return lines.joined(separator: "\n")
  }
}
