// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// labelManaged with valueManaged is on RuntimeClasses that the controller made. It touches no
// other.
const (
	labelManaged = "app.kubernetes.io/managed-by"
	valueManaged = "vk-firkin"
)

// classChanges are what makes the RuntimeClasses those of the templates.
type classChanges struct {
	create, update, delete []*nodev1.RuntimeClass
	// conflicts are templates whose name gives a RuntimeClass that is not theirs, with what
	// to do about it.
	conflicts map[Key]string
}

// planClasses gives each template the RuntimeClass of its name. RuntimeClasses have no
// namespace: templates of one name and one shape share one, and of different shapes the
// oldest template decides, because pods that run were admitted with its overhead. Pure.
func planClasses(templates map[Key]*managedTemplate, existing []*nodev1.RuntimeClass) classChanges {
	c := classChanges{conflicts: map[Key]string{}}
	owners := map[string]*managedTemplate{}
	sorted := make([]*managedTemplate, 0, len(templates))
	for _, t := range templates {
		if t.object.DeletionTimestamp == nil {
			sorted = append(sorted, t)
		}
	}
	slices.SortFunc(sorted, func(a, b *managedTemplate) int {
		return cmp.Or(a.object.CreationTimestamp.Compare(b.object.CreationTimestamp.Time), compareKeys(a.key, b.key))
	})
	classes := map[string]*nodev1.RuntimeClass{}
	for _, class := range existing {
		classes[class.Name] = class
	}
	for _, t := range sorted {
		name := t.key.Name
		have := classes[name]
		if name == v1alpha1.PlainRuntimeClass {
			c.conflicts[t.key] = fmt.Sprintf("RuntimeClass %s is that of pods of no template: let pods say %s: %s instead, or give the template another name", name, v1alpha1.AnnotationTemplate, name)
			continue
		}
		if have != nil && !ours(have) {
			c.conflicts[t.key] = fmt.Sprintf("RuntimeClass %s exists and is not made by vk-firkin: let pods say %s: %s instead, or give the template another name", name, v1alpha1.AnnotationTemplate, name)
			continue
		}
		if owner := owners[name]; owner != nil {
			if !equality.Semantic.DeepEqual(owner.object.Spec.Shape, t.object.Spec.Shape) || isMacOS(owner) != isMacOS(t) {
				c.conflicts[t.key] = fmt.Sprintf("RuntimeClass %s has the shape of the older template %s: let pods say %s: %s instead, or give the template another name or that shape and guest", name, owner.key, v1alpha1.AnnotationTemplate, name)
			}
			continue
		}
		owners[name] = t
		want := runtimeClass(name, t.object.Spec.Shape, isMacOS(t))
		switch {
		case have == nil:
			c.create = append(c.create, want)
		case have.Handler != want.Handler: // it cannot be changed
			c.delete = append(c.delete, have)
		case !equality.Semantic.DeepEqual(have.Overhead, want.Overhead) || !equality.Semantic.DeepEqual(have.Scheduling, want.Scheduling):
			next := have.DeepCopy()
			next.Overhead, next.Scheduling = want.Overhead, want.Scheduling
			c.update = append(c.update, next)
		}
	}
	for _, class := range existing {
		if ours(class) && owners[class.Name] == nil && class.DeletionTimestamp == nil {
			c.delete = append(c.delete, class)
		}
	}
	return c
}

func ours(c *nodev1.RuntimeClass) bool { return c.Labels[labelManaged] == valueManaged }

func isMacOS(t *managedTemplate) bool { return t.object.Spec.GuestOS == v1alpha1.GuestMacOS }

// runtimeClass makes the stock scheduler account for the machine, and lead to nodes that
// make machines. The overhead of a macOS guest has one of the node's slots as well: the
// scheduler adds any resource in it to what the pod requests.
func runtimeClass(name string, shape v1alpha1.MachineShape, macOS bool) *nodev1.RuntimeClass {
	class := &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelManaged: valueManaged}},
		Handler:    v1alpha1.RuntimeHandler,
		Overhead: &nodev1.Overhead{PodFixed: corev1.ResourceList{
			corev1.ResourceCPU:    *resource.NewMilliQuantity(shape.CPU.MilliValue(), resource.DecimalSI),
			corev1.ResourceMemory: *resource.NewQuantity(shape.Memory.Value(), resource.BinarySI),
		}},
		Scheduling: &nodev1.Scheduling{
			NodeSelector: map[string]string{v1alpha1.LabelMachine: "true"},
			Tolerations:  []corev1.Toleration{{Key: v1alpha1.LabelMachine, Operator: corev1.TolerationOpExists}},
		},
	}
	if macOS {
		class.Overhead.PodFixed[v1alpha1.ResourceMacOSVM] = *resource.NewQuantity(1, resource.DecimalSI)
		class.Scheduling.NodeSelector[v1alpha1.LabelMacOSGuests] = "true"
	}
	return class
}

// writeClasses makes, changes and removes RuntimeClasses, and returns the conflicts.
func (r *Reconciler) writeClasses(ctx context.Context, f *fleet, existing []*nodev1.RuntimeClass) (map[Key]string, error) {
	c := planClasses(f.templates, existing)
	var errs []error
	done := func(what string, class *nodev1.RuntimeClass, err error) {
		r.metrics.write("RuntimeClass", err)
		// The caches lag behind our own writes; the next pass sees what is true.
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
			errs = append(errs, fmt.Errorf("%s RuntimeClass %s: %w", what, class.Name, err))
		}
	}
	for _, class := range c.delete {
		done("delete", class, r.cluster.Delete(ctx, class))
	}
	for _, class := range c.update {
		done("update", class, r.cluster.Update(ctx, class))
	}
	for _, class := range c.create {
		done("create", class, r.cluster.Create(ctx, class))
	}
	return c.conflicts, errors.Join(errs...)
}
