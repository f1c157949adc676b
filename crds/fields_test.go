// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package crds

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// TestDefinitionsMatchTypes finds a field that was added to, renamed in or removed from
// the types without `make generate`. What make verify compares are all details; this
// costs milliseconds and runs with every test.
func TestDefinitionsMatchTypes(t *testing.T) {
	for kind, k := range kinds(t) {
		scheme := runtime.NewScheme()
		if err := v1alpha1.AddToScheme(scheme); err != nil {
			t.Fatal(err)
		}
		object, err := scheme.New(v1alpha1.GroupVersion.WithKind(kind))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, kind, reflect.TypeOf(object).Elem(), k.structural)
	}
}

func compare(t *testing.T, path string, typ reflect.Type, schema *structuralschema.Structural) {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if schema.XPreserveUnknownFields || slices.Contains(leaves, typ) {
		return
	}
	switch typ.Kind() { //nolint:exhaustive // the others have no fields
	case reflect.Struct:
		fields := map[string]bool{}
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if options == "inline" || name == "-" || f.Type == reflect.TypeFor[metav1.TypeMeta]() {
				continue
			}
			fields[name] = true
			below, ok := schema.Properties[name]
			if !ok {
				t.Errorf("%s.%s is not in the definition: run make generate", path, name)
				continue
			}
			if below.Description == "" && f.Type != reflect.TypeFor[metav1.ObjectMeta]() {
				t.Errorf("%s.%s has no description: kubectl explain shows none", path, name)
			}
			compare(t, path+"."+name, f.Type, &below)
		}
		for name := range schema.Properties {
			if !fields[name] && name != "apiVersion" && name != "kind" {
				t.Errorf("%s.%s is in the definition and not in the type: run make generate", path, name)
			}
		}
	case reflect.Slice:
		if schema.Items == nil {
			t.Errorf("%s is a list and not one in the definition: run make generate", path)
			return
		}
		if schema.ValueValidation == nil || schema.ValueValidation.MaxItems == nil {
			t.Errorf("%s has no bound", path)
		}
		compare(t, path+"[]", typ.Elem(), schema.Items)
	}
}

// leaves have a schema of their own.
var leaves = []reflect.Type{
	reflect.TypeFor[metav1.ObjectMeta](), reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.Duration](),
	reflect.TypeFor[resource.Quantity](), reflect.TypeFor[metav1.Condition](),
}
