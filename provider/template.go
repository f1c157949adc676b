// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// AnnotationPath on a pod asks for a slower way to its machine, to find out what is
// wrong with the faster ones or to measure: PathRestore or PathCold.
const AnnotationPath = "firkin.dev/path"

// Reasons of pods that wait for their template, or are refused for it.
const (
	ReasonTemplateNotFound   = v1alpha1.ReasonTemplateNotFound
	ReasonTemplateInvalid    = v1alpha1.ReasonTemplateInvalid
	ReasonTemplateUnknown    = "TemplateUnknown"
	ReasonImageNotInTemplate = "ImageNotInTemplate"
)

// Template is what a pod's machine is prepared with, and what it costs.
type Template struct {
	warmpool.Template
	// MilliCPU is what the machine takes from the node beyond what its containers
	// request. Its memory is the shape's.
	MilliCPU int64
}

// Templates are the SnapshotTemplates of the cluster, as this node knows them.
// provider/nodeledger implements it. Safe for concurrent use; nothing in it blocks.
type Templates interface {
	// Template returns the current revision of a template. Errors: ErrNotFound when the
	// namespace has none of this name; ErrInvalidTemplate; anything else when the API
	// server has not told yet. All may change by themselves: see OnChange.
	Template(namespace, name string) (Template, error)
	// OnChange lets f be called when a template came, changed or went, and when it
	// becomes known which there are (with empty names). It must not block. It is to be
	// called before the node runs.
	OnChange(f func(namespace, name string))
}

// ErrInvalidTemplate means that the template exists, and this node cannot make a machine of it. The
// message says what to change.
var ErrInvalidTemplate = errors.New("invalid template")

// NodePool is what the node offers of one warm pool.
type NodePool struct {
	// Key is the pool's label and its extended resource: warm.firkin.dev/NAMESPACE.POOL.
	// Empty when that is too long for either.
	Key string
	// Ready is how many machines can be checked out, Desired how many should.
	Ready, Desired int
	// Reserved: the pool's machines never give way, so their room is not offered to
	// other pods.
	Reserved bool
	// MacOS: each machine is one of the node's macOS guests.
	MacOS bool
	// Each is what one machine takes from the node once a pod has it.
	Each Budget
}

// Pools are the node's warm pools. provider/nodeledger implements it. Safe for
// concurrent use; nothing in it blocks.
type Pools interface {
	// Pools returns the pools of the node's targets, sorted by key.
	Pools() []NodePool
	// WithheldMacOSGuests is how many of its macOS guests the host refuses to run for now.
	WithheldMacOSGuests() int64
	// Changes holds one when Pools may return something new.
	Changes() <-chan struct{}
}

// templateName is the SnapshotTemplate that the pod names; empty for none. The
// annotation wins: it also reaches a template that has no RuntimeClass.
func templateName(pod *corev1.Pod) string {
	if name := pod.Annotations[v1alpha1.AnnotationTemplate]; name != "" {
		return name
	}
	if name := pod.Spec.RuntimeClassName; name != nil && *name != v1alpha1.PlainRuntimeClass {
		return *name
	}
	return ""
}

// poolOf is the pool whose extended resource the pod requests; empty for none. A pool's
// templates are those of its namespace, so another namespace's is of no use.
func poolOf(pod *corev1.Pod) string {
	var pools []string
	for i := range pod.Spec.Containers {
		for resource := range pod.Spec.Containers[i].Resources.Requests {
			key, ok := strings.CutPrefix(string(resource), v1alpha1.ResourceWarmPrefix)
			if namespace, pool, cut := strings.Cut(key, "."); ok && cut && namespace == pod.Namespace {
				pools = append(pools, namespace+"/"+pool)
			}
		}
	}
	if len(pools) == 0 {
		return ""
	}
	return slices.Min(pools)
}

// templateWait is why a pod has no template yet, which may change by itself: a template
// that is missing may be applied after the pod, and one that is invalid corrected.
type templateWait struct {
	reason, message string
	failures        int
	// retryAt is when to look again although nothing was heard.
	retryAt time.Time
}

func (w *templateWait) text() string {
	if w == nil {
		return ""
	}
	return w.message
}

const templateRetryFirst, templateRetryMax = time.Second, time.Minute

// lookUp finds the pod's template, or says what the pod waits for.
func lookUp(pod *corev1.Pod, templates Templates) (Template, *templateWait) {
	name := templateName(pod)
	if templates == nil {
		return Template{}, &templateWait{reason: ReasonTemplateUnknown, message: fmt.Sprintf("the pod names SnapshotTemplate %q, and this node does not follow any", name)}
	}
	t, err := templates.Template(pod.Namespace, name)
	switch {
	case err == nil:
		return t, nil
	case errors.Is(err, ErrNotFound):
		return t, &templateWait{reason: ReasonTemplateNotFound, message: fmt.Sprintf(
			"SnapshotTemplate %q does not exist in namespace %q; the pod names it by %s and starts when it is there", name, pod.Namespace, namedBy(pod))}
	case errors.Is(err, ErrInvalidTemplate):
		return t, &templateWait{reason: ReasonTemplateInvalid, message: err.Error()}
	default:
		return t, &templateWait{reason: ReasonTemplateUnknown, message: err.Error()}
	}
}

func namedBy(pod *corev1.Pod) string {
	if pod.Annotations[v1alpha1.AnnotationTemplate] != "" {
		return "annotation " + v1alpha1.AnnotationTemplate
	}
	return "spec.runtimeClassName"
}

// useTemplate makes the plan one of a pod of the template, or says why it cannot be.
// It is pure.
//
// The machine has the template's shape, whatever the containers request, and all of
// them must fit in. It takes its memory from the node and, beyond what the containers
// request, the processor time of the template's shape: that is what the RuntimeClass
// adds as overhead for the scheduler.
func useTemplate(pod *corev1.Pod, p *plan, t Template) *refusal {
	for i := range p.containers {
		c := &p.containers[i]
		if image := c.spec.Image; c.kind != kindEphemeral && !slices.Contains(t.Images, image) {
			return &refusal{Reason: ReasonImageNotInTemplate, Message: fmt.Sprintf(
				"%s.image: %q is not among the images of SnapshotTemplate %q: %s", c.field, image, t.ID(), strings.Join(t.Images, ", "))}
		}
	}
	if r := imageVolumesOutside(pod, &t); r != nil {
		return r
	}
	cpu, memory := int64(t.Shape.VCPUs)*1000, t.Shape.MemoryBytes-warmpool.GuestMemoryOverhead
	switch {
	case p.need.MilliCPURequest > cpu:
		return &refusal{Reason: reasonOutOfCPU, Message: fmt.Sprintf(
			"Pod was rejected: its containers request %dm CPU, a machine of SnapshotTemplate %q has %dm", p.need.MilliCPURequest, t.ID(), cpu)}
	case p.need.MemoryRequestBytes > memory:
		return &refusal{Reason: reasonOutOfMemory, Message: fmt.Sprintf(
			"Pod was rejected: its containers request %d bytes of memory, a machine of SnapshotTemplate %q has %d for them", p.need.MemoryRequestBytes, t.ID(), memory)}
	}
	if t.GuestOS == vm.GuestMacOS {
		if faults := unsupportedMacOS(pod); len(faults) > 0 {
			return &refusal{Reason: ReasonUnsupportedField, Message: strings.Join(faults, "; ")}
		}
	}
	p.template = &t
	p.shape = t.Shape
	p.budget = Budget{MilliCPU: p.need.MilliCPURequest + t.MilliCPU, MemoryBytes: t.Shape.MemoryBytes}
	return nil
}

// refs are the references of the pod's images, each once.
func (p *plan) refs() []string {
	var refs []string
	for _, k := range p.images {
		if !slices.Contains(refs, k.ref) {
			refs = append(refs, k.ref)
		}
	}
	return refs
}

// lowerLayers are what a container sees between its own writes and its image: what the
// template's commands wrote, for which they had the image in the first slot.
func (p *plan) lowerLayers(slot int) []string {
	if p.template == nil || slot != 0 || p.template.GuestOS == vm.GuestMacOS {
		return nil // a macOS guest has what they wrote on its disk
	}
	return []string{recipe.Layer}
}

// slotImage is the image of a reference in a machine.
func slotImage(images []warmpool.SlotImage, ref string) (warmpool.SlotImage, bool) {
	for _, i := range images {
		if i.Ref == ref {
			return i, true
		}
	}
	return warmpool.SlotImage{}, false
}

// imageID is how a status shows an image: the repository, at the digest.
func imageID(ref, digest string) string {
	repository, _, _ := strings.Cut(ref, "@")
	if i := strings.LastIndexByte(repository, ':'); i > strings.LastIndexByte(repository, '/') {
		repository = repository[:i]
	}
	return cmp.Or(repository, ref) + "@" + digest
}
