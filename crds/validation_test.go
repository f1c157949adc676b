// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package crds

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

// kind checks objects as the API server does.
type kind struct {
	structural *structuralschema.Structural
	schema     schemavalidation.SchemaValidator
	cel        *cel.Validator
}

// kinds validates the embedded definitions, costs of their rules included, and returns
// what checks objects of each kind.
func kinds(t *testing.T) map[string]kind {
	t.Helper()
	scheme := runtime.NewScheme()
	install.Install(scheme)
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	result := map[string]kind{}
	for _, object := range all {
		if object.GetKind() != "CustomResourceDefinition" {
			continue
		}
		var v1 apiextensionsv1.CustomResourceDefinition
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &v1, true); err != nil {
			t.Fatal(err)
		}
		apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
		apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
		var internal apiextensions.CustomResourceDefinition
		if err := scheme.Convert(&v1, &internal, nil); err != nil {
			t.Fatal(err)
		}
		internal.Status.StoredVersions = []string{v1.Spec.Versions[0].Name}
		for _, fault := range crdvalidation.ValidateCustomResourceDefinition(t.Context(), &internal) {
			t.Errorf("%s: %v", v1.Name, fault)
		}
		schema := internal.Spec.Validation
		if schema == nil {
			schema = internal.Spec.Versions[0].Schema
		}
		structural, err := structuralschema.NewStructural(schema.OpenAPIV3Schema)
		if err != nil {
			t.Fatal(err)
		}
		validator, _, err := schemavalidation.NewSchemaValidator(schema.OpenAPIV3Schema)
		if err != nil {
			t.Fatal(err)
		}
		result[v1.Spec.Names.Kind] = kind{structural, validator, cel.NewValidator(structural, true, celconfig.PerCallLimit)}
	}
	return result
}

// check returns the faults that the API server would find in an object.
func (k kind) check(t *testing.T, object map[string]any) field.ErrorList {
	t.Helper()
	object = runtime.DeepCopyJSON(object)
	defaulting.Default(object, k.structural)
	faults := schemavalidation.ValidateCustomResource(nil, object, k.schema)
	faults = append(faults, listtype.ValidateListSetsAndMaps(nil, k.structural, object)...)
	if len(faults) > 0 { // the server does not come to the rules either
		return faults
	}
	faults, _ = k.cel.Validate(t.Context(), nil, k.structural, object, nil, celconfig.RuntimeCELCostBudget)
	return faults
}

type refusal struct {
	Kind  string         `json:"kind"`
	Field string         `json:"field"`
	Says  string         `json:"says"`
	Patch map[string]any `json:"patch"`
}

func TestAcceptsGoodObjects(t *testing.T) {
	kinds := kinds(t)
	for _, object := range accepted(t) {
		if faults := kinds[object.GetKind()].check(t, object.Object); len(faults) > 0 {
			t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), faults)
		}
	}
}

func TestRefusesBadObjects(t *testing.T) {
	kinds := kinds(t)
	base := map[string]map[string]any{}
	for _, object := range slices.Backward(accepted(t)) {
		base[object.GetKind()] = object.Object
	}
	for _, file := range []string{"testdata/refused.yaml", "testdata/refused-status.yaml"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var table []refusal
		if data, err = yaml.ToJSON(data); err == nil {
			err = json.Unmarshal(data, &table)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range table {
			faults := kinds[r.Kind].check(t, merge(base[r.Kind], r.Patch))
			if !slices.ContainsFunc(faults, func(f *field.Error) bool {
				return (f.Field == r.Field || r.Field == "") && strings.Contains(f.Error(), r.Says)
			}) {
				t.Errorf("%s %v: want %s: ...%s..., got %v", r.Kind, r.Patch, r.Field, r.Says, faults)
			}
		}
	}
}

// merge is RFC 7386.
func merge(base map[string]any, patch map[string]any) map[string]any {
	merged := maps.Clone(base)
	if merged == nil {
		merged = map[string]any{}
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(merged, key)
		case map[string]any:
			below, _ := merged[key].(map[string]any)
			merged[key] = merge(below, value)
		default:
			merged[key] = value
		}
	}
	return runtime.DeepCopyJSON(merged)
}

func accepted(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	data, err := os.ReadFile("testdata/accepted.yaml")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}
