// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

// Step is one thing that is done about a shortage. Stable: a label of metrics.
type Step string

// The steps, in order.
const (
	// StepStopRefills: pools are not filled.
	StepStopRefills Step = "StopRefills"
	// StepEvictWarm: a warm machine goes that would give way to a pod as well.
	StepEvictWarm Step = "EvictWarm"
	// StepCollectSnapshots, StepCollectImages: what nobody uses goes, the least recently
	// used first, as much as lacks.
	StepCollectSnapshots Step = "CollectSnapshots"
	StepCollectImages    Step = "CollectImages"
	// StepRefusePods: the node has the condition, and takes no more pods.
	StepRefusePods Step = "RefusePods"
	// StepEvictReserved: a warm machine goes that is kept from pods' demand (reclaim policy
	// Never). It is a promise, but no work: it goes before work does, and not sooner.
	StepEvictReserved Step = "EvictReserved"
	// StepEvictPod: a running pod is ended.
	StepEvictPod Step = "EvictPod"
)

// Steps are all of them, for who counts them.
var Steps = []Step{StepStopRefills, StepEvictWarm, StepCollectSnapshots, StepCollectImages, StepRefusePods, StepEvictReserved, StepEvictPod}

// depthOf is from which depth on a step is taken.
func depthOf(s Step) Depth {
	switch s {
	case StepStopRefills:
		return Brake
	case StepEvictReserved, StepEvictPod:
		return Evict
	case StepEvictWarm, StepCollectSnapshots, StepCollectImages, StepRefusePods:
	}
	return Shed
}

// helps tells whether a step gives any of a resource. A disk that has images only is filled
// by pulls alone: no machine writes to it. Memory has nothing that is collected: what is
// cached of files counts as available.
func helps(s Step, r Resource, shared bool) bool {
	switch s {
	case StepEvictWarm, StepEvictReserved, StepEvictPod:
		return r != Images
	case StepCollectSnapshots:
		return r == Disk
	case StepCollectImages:
		return r == Images || r == Disk && shared
	case StepStopRefills, StepRefusePods:
	}
	return true
}

// task is a step for a resource.
type task struct {
	step     Step
	resource Resource
}

// nextTask is what to do now: the first step, in their order, that a resource needs and
// that is not done. shared: images are on the machines' disk. It is pure.
func nextTask(need map[Resource]Depth, shared bool, done func(task) bool) (task, bool) {
	for _, s := range Steps {
		for _, r := range resources {
			if t := (task{s, r}); need[r] >= depthOf(s) && helps(s, r, shared) && !done(t) {
				return t, true
			}
		}
	}
	return task{}, false
}
