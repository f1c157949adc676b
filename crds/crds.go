// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package crds holds what a cluster must have before vk-firkin can use it: the
// generated CustomResourceDefinitions of crds/v1alpha1, and the rights of the
// controller and of nodes.
package crds

import (
	"bufio"
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

//go:embed firkin.dev_*.yaml
var definitions embed.FS

//go:embed rbac.yaml
var rbac []byte

// YAML is one stream with the CustomResourceDefinitions and the rights, in the order
// in which kubectl should apply them.
func YAML() []byte {
	files, err := fs.Glob(definitions, "*.yaml")
	if err != nil { // the pattern is constant
		panic(err)
	}
	var all bytes.Buffer
	for _, name := range files {
		data, err := definitions.ReadFile(name)
		if err != nil { // it is embedded
			panic(err)
		}
		all.WriteString("---\n")
		all.Write(bytes.TrimPrefix(data, []byte("---\n")))
	}
	all.WriteString("---\n")
	all.Write(rbac)
	return all.Bytes()
}

// All decodes YAML.
func All() ([]*unstructured.Unstructured, error) {
	all, err := decode(YAML())
	if err != nil {
		return nil, fmt.Errorf("decode embedded manifests: %w", err)
	}
	return all, nil
}

func decode(stream []byte) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	for reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(stream))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		object := &unstructured.Unstructured{}
		if document, err = yaml.ToJSON(document); err == nil {
			err = json.Unmarshal(document, &object.Object) // integers stay integers
		}
		if err != nil {
			return nil, err
		}
		if len(object.Object) > 0 {
			all = append(all, object)
		}
	}
}
