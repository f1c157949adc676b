// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of the API.
var GroupVersion = schema.GroupVersion{Group: "firkin.dev", Version: "v1alpha1"}

// AddToScheme makes a scheme know the API.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&SnapshotTemplate{}, &SnapshotTemplateList{},
		&WarmPool{}, &WarmPoolList{},
		&NodeLedger{}, &NodeLedgerList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Annotation and labels of the API. Stable.
const (
	// AnnotationTemplate on a pod names the SnapshotTemplate, of the pod's namespace, that
	// its machine is restored from. It wins over spec.runtimeClassName.
	AnnotationTemplate = "firkin.dev/template"
	// LabelWarmPrefix, with NAMESPACE.POOL behind it, is on nodes with a ready machine of that pool.
	LabelWarmPrefix = "warm.firkin.dev/"
	// ResourceWarmPrefix, with NAMESPACE.POOL behind it, is the extended resource of a pool with reclaim policy Never.
	ResourceWarmPrefix = "warm.firkin.dev/"
	// LabelMachine, with the value "true", is on every node whose pods run in machines; the
	// taint that keeps other pods away has the same key.
	LabelMachine = "firkin.dev/machine"
	// ResourceMacOSVM is the extended resource of nodes that run macOS guests: how many at once.
	// The RuntimeClass of a macOS template has one in its overhead.
	ResourceMacOSVM = "firkin.dev/macos-vm"
	// LabelMacOSGuests, with the value "true", is on those nodes.
	LabelMacOSGuests = "firkin.dev/macos-guests"
	// RuntimeHandler of the RuntimeClasses of templates.
	RuntimeHandler = "firkin"
	// PlainRuntimeClass is the RuntimeClass of pods of no template: it leads them to nodes
	// whose pods run in machines, and is no template's name.
	PlainRuntimeClass = "firkin"
)
