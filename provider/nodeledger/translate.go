// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// Bounds of what the API server may ask of one node. They only keep absurd numbers
// away from the supply: what really fits, its ledger says.
const (
	maxReplicas   = 1000
	minAge        = time.Second
	maxAge        = 10 * 365 * 24 * time.Hour
	maxImageBytes = 512
)

// Limits are what a machine of this node can have.
type Limits struct {
	// ImageSlots is the number of different images one machine can have.
	ImageSlots int
	// MacOSGuests is how many macOS guests the node runs at once; 0 is none.
	MacOSGuests int
}

// Fault is why a pool is not kept as its target says.
type Fault struct {
	Namespace, Pool, Template, Revision string
	Desired                             int
	// OfTemplate: the template is at fault, not the pool's numbers.
	OfTemplate bool
	Message    string
}

// Targets translates what the controller wants of the node. A pool whose target, or
// whose template, cannot be used keeps its target of before, if it had one, so that a
// mistake does not empty it; the fault says what is wrong. Pure. The result is sorted
// by pool.
func Targets(spec *v1alpha1.NodeLedgerSpec, before []warmpool.Target, limits Limits) ([]warmpool.Target, []Fault) {
	templates := map[templateKey]*v1alpha1.TemplateRevision{}
	for i := range spec.Templates {
		t := &spec.Templates[i]
		templates[templateKey{t.Namespace, t.Name, t.Revision}] = t
	}
	translated := map[templateKey]provider.Template{}
	refused := map[templateKey]error{}
	former := map[string]warmpool.Target{}
	for _, t := range before {
		former[t.Pool] = t
	}
	var targets []warmpool.Target
	var faults []Fault
	seen := map[string]bool{}
	for i := range spec.Targets {
		p := &spec.Targets[i]
		pool := p.Namespace + "/" + p.Pool
		if seen[pool] || len(seen) >= v1alpha1.MaxNodeEntries {
			continue // the API server's schema knows neither
		}
		seen[pool] = true
		target, ofTemplate, err := targetOf(p, func(k templateKey) (provider.Template, error) {
			if t, ok := translated[k]; ok || refused[k] != nil {
				return t, refused[k]
			}
			r, ok := templates[k]
			if !ok {
				return provider.Template{}, fmt.Errorf("the node's ledger does not hold revision %.32q of template %q", k.revision, k.name)
			}
			t, err := TemplateOf(k.namespace, k.name, k.revision, &r.Spec, limits)
			translated[k], refused[k] = t, err
			return t, err
		})
		if err != nil {
			f := Fault{Namespace: p.Namespace, Pool: p.Pool, Template: p.Template, Revision: p.Revision,
				Desired: int(p.Replicas), OfTemplate: ofTemplate, Message: err.Error()}
			faults = append(faults, f)
			if old, ok := former[pool]; ok {
				targets = append(targets, old)
			}
			continue
		}
		targets = append(targets, target)
	}
	slices.SortFunc(targets, func(a, b warmpool.Target) int { return cmp.Compare(a.Pool, b.Pool) })
	return targets, faults
}

type templateKey struct{ namespace, name, revision string }

// targetOf translates one target. ofTemplate tells whose fault an error is.
func targetOf(p *v1alpha1.PoolTarget, template func(templateKey) (provider.Template, error)) (_ warmpool.Target, ofTemplate bool, err error) {
	t := warmpool.Target{
		Pool: p.Namespace + "/" + p.Pool, Desired: int(p.Replicas), Priority: int(p.Priority),
		MaxSurge: int(p.MaxSurge), MaxUnavailable: int(p.MaxUnavailable),
	}
	var errs []error
	for _, n := range []struct {
		name  string
		value int32
	}{{"replicas", p.Replicas}, {"maxSurge", p.MaxSurge}, {"maxUnavailable", p.MaxUnavailable}} {
		if n.value < 0 || n.value > maxReplicas {
			errs = append(errs, fmt.Errorf("%s is %d, a node takes 0 to %d", n.name, n.value, maxReplicas))
		}
	}
	if t.MaxSurge == 0 && t.MaxUnavailable == 0 {
		t.MaxSurge = 1 // or outdated entries could never be replaced
	}
	switch p.ReclaimPolicy {
	case v1alpha1.ReclaimOnDemand, "":
		t.Reclaim = warmpool.ReclaimOnDemand
	case v1alpha1.ReclaimNever:
		t.Reclaim = warmpool.ReclaimNever
	default:
		errs = append(errs, fmt.Errorf("reclaimPolicy %.64q: want %s or %s", p.ReclaimPolicy, v1alpha1.ReclaimOnDemand, v1alpha1.ReclaimNever))
	}
	if a := p.MaxAge; a != nil && a.Duration != 0 {
		t.MaxAge = a.Duration
		if t.MaxAge < minAge || t.MaxAge > maxAge {
			errs = append(errs, fmt.Errorf("maxAge is %s, a node takes %s to %s, or 0 for never", t.MaxAge, minAge, maxAge))
		}
	}
	if len(validation.IsDNS1123Label(p.Namespace)) > 0 || len(validation.IsDNS1123Subdomain(p.Pool)) > 0 {
		errs = append(errs, errors.New("namespace or name of the pool is not one that Kubernetes allows"))
	}
	if len(errs) > 0 {
		return t, false, errors.Join(errs...)
	}
	tpl, err := template(templateKey{p.Namespace, p.Template, p.Revision})
	if err != nil {
		return t, true, err
	}
	t.Template = tpl.Template
	// A paused machine has all its memory and uses no processor.
	t.Warm = warmpool.Budget{MemoryBytes: tpl.Shape.MemoryBytes}
	t.Active = warmpool.Budget{MilliCPU: tpl.MilliCPU, MemoryBytes: tpl.Shape.MemoryBytes}
	return t, false, nil
}

// TemplateOf translates a template's specification. What is in it is from a user, and
// is refused as a whole, with every fault named; the error is
// provider.ErrInvalidTemplate. Pure: targets and pods get the same from the same.
func TemplateOf(namespace, name, revision string, spec *v1alpha1.SnapshotTemplateSpec, limits Limits) (provider.Template, error) {
	t := provider.Template{Template: warmpool.Template{Namespace: namespace, Name: name, Revision: revision}}
	spec = spec.DeepCopy()
	spec.Default() // the revision does not tell a default from its absence, so neither may the recipe
	var errs []error
	if len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
		errs = append(errs, errors.New("namespace or name is not one that Kubernetes allows"))
	}
	if revision == "" || len(revision) > 64 || strings.Trim(revision, "0123456789abcdef") != "" {
		errs = append(errs, fmt.Errorf("revision %.64q is not a digest", revision))
	}
	var err error
	t.Images, err = imagesOf(spec, limits)
	errs = append(errs, err)
	t.Shape, t.MilliCPU, err = shapeOf(spec.Shape)
	errs = append(errs, err)
	t.GuestOS, err = guestOf(spec, limits)
	errs = append(errs, err)
	t.Recipe, err = recipeOf(spec)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		text := strings.ReplaceAll(err.Error(), recipe.ErrInvalid.Error()+": ", "")
		return provider.Template{}, fmt.Errorf("%w: %s", provider.ErrInvalidTemplate, strings.ReplaceAll(text, "\n", "; "))
	}
	return t, nil
}

// guestOf is the operating system of the template's guests, and whether it can run here.
func guestOf(spec *v1alpha1.SnapshotTemplateSpec, limits Limits) (vm.GuestOS, error) {
	switch spec.GuestOS {
	case v1alpha1.GuestLinux:
		return "", nil
	case v1alpha1.GuestMacOS:
	default:
		return "", fmt.Errorf("guestOS is %.32q, want %s or %s", spec.GuestOS, v1alpha1.GuestLinux, v1alpha1.GuestMacOS)
	}
	var errs []error
	if limits.MacOSGuests == 0 {
		errs = append(errs, errors.New("guestOS is macos, and this node runs no macOS guests"))
	}
	if len(spec.AdditionalImages) > 0 {
		errs = append(errs, errors.New("additionalImages: the only image of a macOS guest is its system"))
	}
	if spec.Shape.CPU.CmpInt64(v1alpha1.MinMacOSCPUs) < 0 || spec.Shape.Memory.CmpInt64(v1alpha1.MinMacOSMemoryBytes) < 0 {
		errs = append(errs, fmt.Errorf("shape: a macOS guest has at least %d CPUs and %d Gi of memory", v1alpha1.MinMacOSCPUs, v1alpha1.MinMacOSMemoryBytes>>30))
	}
	return vm.GuestMacOS, errors.Join(errs...)
}

// imagesOf are the template's images in slot order, each once.
func imagesOf(spec *v1alpha1.SnapshotTemplateSpec, limits Limits) ([]string, error) {
	var images []string
	for _, ref := range append([]string{spec.Image}, spec.AdditionalImages...) {
		if ref == "" || len(ref) > maxImageBytes || strings.HasPrefix(ref, "-") || strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("image %.128q is not a reference", ref)
		}
		if !slices.Contains(images, ref) {
			images = append(images, ref)
		}
	}
	if len(images) > limits.ImageSlots {
		return nil, fmt.Errorf("%d different images, a machine of this node has %d image slots", len(images), limits.ImageSlots)
	}
	return images, nil
}

var (
	mostCPU    = *resource.NewQuantity(vm.MaxVCPUs, resource.DecimalSI)
	mostMemory = *resource.NewQuantity(vm.MaxMemoryBytes, resource.BinarySI)
)

// shapeOf rounds processors up to whole ones: vCPUs are threads of the host and share.
func shapeOf(s v1alpha1.MachineShape) (vm.Shape, int64, error) {
	if s.CPU.Sign() <= 0 || s.CPU.Cmp(mostCPU) > 0 {
		return vm.Shape{}, 0, fmt.Errorf("shape.cpu is %s, want more than 0 and at most %s", text(s.CPU), mostCPU.String())
	}
	if s.Memory.Sign() <= 0 || s.Memory.Cmp(mostMemory) > 0 {
		return vm.Shape{}, 0, fmt.Errorf("shape.memory is %s, want at most %s", text(s.Memory), mostMemory.String())
	}
	milli := s.CPU.MilliValue()
	shape := vm.Shape{VCPUs: int((milli + 999) / 1000), MemoryBytes: s.Memory.Value()}
	if err := shape.Validate(); err != nil {
		return vm.Shape{}, 0, fmt.Errorf("shape: %w", err)
	}
	return shape, milli, nil
}

// text is a quantity for a message, whatever its length.
func text(q resource.Quantity) string { return fmt.Sprintf("%.32s", q.String()) }

// recipeOf translates the commands. What they may be, recipe.Validate says.
func recipeOf(spec *v1alpha1.SnapshotTemplateSpec) (recipe.Recipe, error) {
	r := recipe.Recipe{Timeout: time.Duration(spec.BuildTimeoutSeconds) * time.Second}
	for _, e := range spec.Env {
		r.Env = append(r.Env, e.Name+"="+e.Value)
	}
	if c := spec.Checkout; c != nil {
		r.Checkout = &recipe.Checkout{Repository: c.Repository, Ref: c.Ref, Directory: c.Directory}
		r.WorkingDir = c.Directory
	}
	for _, c := range spec.Setup {
		r.Setup = append(r.Setup, commandOf(c))
	}
	for _, c := range spec.WarmCache {
		r.WarmCache = append(r.WarmCache, commandOf(c))
	}
	if spec.Start != nil {
		c := commandOf(*spec.Start)
		r.Start = &c
	}
	if spec.Readiness != nil {
		r.Readiness = readinessOf(spec.Readiness)
	}
	return r, r.Validate()
}

func commandOf(c v1alpha1.Command) recipe.Command {
	return recipe.Command{Args: slices.Clone(c.Command), WorkingDir: c.WorkingDir}
}

func readinessOf(c *v1alpha1.ReadinessCheck) *recipe.Readiness {
	r := &recipe.Readiness{Timeout: time.Duration(c.TimeoutSeconds) * time.Second, Period: time.Duration(c.PeriodSeconds) * time.Second}
	if c.Exec != nil {
		exec := commandOf(*c.Exec)
		r.Exec = &exec
	}
	if c.HTTPGet != nil {
		r.HTTP = &recipe.HTTP{Port: int(c.HTTPGet.Port), Path: c.HTTPGet.Path}
	}
	if c.TCPSocket != nil {
		r.TCP = &recipe.TCP{Port: int(c.TCPSocket.Port)}
	}
	return r
}
