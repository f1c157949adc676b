// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/yaml"
)

// exclusion is why some specs are not run: they want what a pod in a machine cannot have.
type exclusion struct {
	// Spec is a regular expression that the specs' names match.
	Spec string `json:"spec"`
	// Reason is printed beside each of them.
	Reason string `json:"reason"`

	re *regexp.Regexp
}

// parseExclusions reads the list. Every entry has a reason: a list without reasons is how
// a failure is hidden.
func parseExclusions(content []byte) ([]exclusion, error) {
	var all []exclusion
	if err := yaml.UnmarshalStrict(content, &all); err != nil {
		return nil, fmt.Errorf("read the exclusions: %w", err)
	}
	var errs []error
	seen := map[string]bool{}
	for i := range all {
		e := &all[i]
		e.Reason = strings.TrimSpace(e.Reason)
		switch {
		case e.Spec == "":
			errs = append(errs, fmt.Errorf("exclusion %d names no spec", i+1))
			continue
		case e.Reason == "":
			errs = append(errs, fmt.Errorf("exclusion %q has no reason", e.Spec))
		case seen[e.Spec]:
			errs = append(errs, fmt.Errorf("exclusion %q is there twice", e.Spec))
		}
		seen[e.Spec] = true
		var err error
		if e.re, err = regexp.Compile(e.Spec); err != nil {
			errs = append(errs, fmt.Errorf("exclusion %q: %w", e.Spec, err))
		}
	}
	return all, errors.Join(errs...)
}

// stale are errors for the entries that match none of the release's specs, such as one that a
// new release has renamed.
func stale(all []exclusion, specs []spec) error {
	var errs []error
next:
	for _, e := range all {
		for _, s := range specs {
			if e.re.MatchString(s.Name) {
				continue next
			}
		}
		errs = append(errs, fmt.Errorf("exclusion %q matches no spec: remove or mend it", e.Spec))
	}
	return errors.Join(errs...)
}
